"""Accelerators that a step can be compiled for without owning one, and their published rates."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.resources
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Any

from jax.experimental import topologies

from hjepa_jax.errors import UserError

_GOOGLE = "Google Cloud's documentation of TPU {}"
_PLANE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")


@dataclasses.dataclass(frozen=True)
class Chip:
    """What is published of a chip.

    Attributes:
      platform: JAX's name of the compiler, 'tpu' or 'cuda'.
      layouts: how many chips, and in which arrangement.
      flops: peak of dense bfloat16 products, in operations/s.
      memory: peak of the main memory, in bytes/s.
      interconnect: what a chip can send over all its links together, in bytes/s.
      capacity: size of the main memory, in bytes.
      source: where these figures are published.
    """

    platform: str
    layouts: tuple[str, ...]
    flops: float
    memory: float
    interconnect: float
    capacity: float
    source: str


CHIPS: Mapping[str, Chip] = {
    "v4": Chip("tpu", _CUBE, 275e12, 1228e9, 300e9, 32 * 2**30, _GOOGLE.format("v4")),
    "v5e": Chip("tpu", _PLANE, 197e12, 819e9, 200e9, 16 * 2**30, _GOOGLE.format("v5e")),
    "v5p": Chip("tpu", _CUBE, 459e12, 2765e9, 600e9, 95 * 2**30, _GOOGLE.format("v5p")),
    "v6e": Chip("tpu", _PLANE, 918e12, 1640e9, 448e9, 32 * 2**30, _GOOGLE.format("v6e")),
    "h100": Chip(
        "cuda",
        tuple(str(count) for count in range(1, 9)),
        989.4e12,
        3352e9,
        450e9,
        80 * 10**9,
        "NVIDIA's data sheet of the H100 SXM (dense, NVLink in one direction)",
    ),
}
# The modules whose presence tells that a compiler is installed, and the packages that hold them.
_COMPILERS = {
    "tpu": {"libtpu": "libtpu"},
    "cuda": {
        "jax_plugins.xla_cuda13": "jax-cuda13-pjrt",
        "jax_plugins.xla_cuda12": "jax-cuda12-pjrt",
    },
}
# A compiler that looks for its device would wait for a metadata server, log that there is none, or
# refuse a second process on the host.
_NO_DEVICE = {
    "tpu": {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_MIN_LOG_LEVEL": "3",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    },
    "cuda": {"TF_CPP_MIN_LOG_LEVEL": "3"},
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Some chips of one kind.

    Attributes:
      name: as the user wrote it, such as 'v5e:4x4'.
      chip: the kind.
      layout: their arrangement, such as '4x4'.
    """

    name: str
    chip: Chip
    layout: str

    @property
    def chips(self) -> int:
        """The number of chips."""
        return math.prod(int(side) for side in self.layout.split("x"))


def parse_topology(name: str) -> Topology:
    """Returns the topology of a name such as 'v5e:4x4' or 'h100:8'.

    Raises:
      UserError: if there is none of this name; the sentence lists the known ones.
    """
    kind, _, layout = name.partition(":")
    chip = CHIPS.get(kind)
    if chip is None or layout not in chip.layouts:
        known = ", ".join(
            f"{known}:{{{','.join(found.layouts)}}}"
            for known, found in CHIPS.items()
            if chip in (None, found)
        )
        raise UserError(f"--topology={name} is unknown: choose one of {known}.")
    return Topology(name, chip, layout)


def compiler_version(topology: Topology) -> str:
    """Returns package and version of the installed compiler for a topology.

    Raises:
      UserError: if there is none; the sentence says how to install it.
    """
    platform = topology.chip.platform
    for module, package in _COMPILERS[platform].items():
        parent = module.rpartition(".")[0]
        if (not parent or importlib.util.find_spec(parent)) and importlib.util.find_spec(module):
            return f"{package} {importlib.metadata.version(package)}"
    raise UserError(
        f"--topology={topology.name} needs XLA's compiler for {platform.upper()}, which is not "
        f"installed: pip install 'hjepa_jax[{platform}]'."
    )


def devices(topology: Topology) -> list[Any]:
    """Returns descriptions of the devices, for which programs can be compiled but not run.

    Raises:
      UserError: if the compiler is not installed, or knows no such topology.
    """
    version = compiler_version(topology)
    platform = topology.chip.platform
    for variable, value in _NO_DEVICE[platform].items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {}
    if platform == "cuda":
        description = importlib.resources.files("hjepa_jax.tools.plan") / "h100.textproto"
        options["target_config"] = description.read_text()
        options["topology"] = f"1x1x{topology.chips}"
    elif topology.layout == "1x1":
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        found = topologies.get_topology_desc(
            platform=platform,
            topology_name="" if platform == "cuda" else topology.name,
            **options,
        )
    except Exception as error:  # what a compiler raises depends on its version
        reason = re.sub(r"\s+", " ", str(error))[:300]
        raise UserError(f"--topology={topology.name} is refused by {version}: {reason}") from error
    return list(found.devices)
