"""Frames as animations: GIF always, and MP4 where ffmpeg is installed."""

from __future__ import annotations

import io
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence

from PIL import Image

from hjepa_jax.evaluation.report.plots import PALETTE

_MILLISECONDS = 80
_COLORS = 128


def gif(frames: Sequence[Image.Image]) -> bytes:
    """Returns frames as a GIF that repeats, with the exact colors of PALETTE among its own."""
    # Thin lines have few pixels, so that an adaptive palette would merge their colors.
    colors = frames[-1].quantize(_COLORS).getpalette() or []
    own = [int(color[i : i + 2], 16) for color in PALETTE for i in (1, 3, 5)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([*own, *colors[: 3 * _COLORS]])
    first, *rest = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    content = io.BytesIO()
    first.save(content, "GIF", save_all=True, append_images=rest, duration=_MILLISECONDS, loop=0)
    return content.getvalue()


def has_ffmpeg() -> bool:
    """Returns whether `mp4` can be used."""
    return shutil.which("ffmpeg") is not None


def mp4(frames: Sequence[Image.Image]) -> bytes:
    """Returns frames, all of one size, as an H.264 film.

    Raises:
      RuntimeError: ffmpeg fails; with its last line.
    """
    width, height = frames[0].size
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "film.mp4"
        command = ["ffmpeg", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-s", f"{width}x{height}", "-r", f"{1000 / _MILLISECONDS:g}", "-i", "-"]
        # The common pixel format of players needs even sides.
        command += ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p", "-y", str(out)]
        pixels = b"".join(frame.convert("RGB").tobytes() for frame in frames)
        done = subprocess.run(command, input=pixels, capture_output=True, check=False)
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise RuntimeError(f"ffmpeg fails: {lines[-1]}")
        return out.read_bytes()
