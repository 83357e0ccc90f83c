// Packing of images into the layout that the tiles of a convolution read.
//
// A band holds the input rows of some output rows, padded with zeros, as [row][block][column][16].
// Channels come in blocks of kBlock, so that the distance between pixels is known at compile time.
#ifndef HJEPA_KERNELS_BAND_H_
#define HJEPA_KERNELS_BAND_H_

#include "common.h"

namespace hjepa {

// A convolution of x [images, in_h, in_w, channels] with taps_h x taps_w taps.
struct Shape {
  int64_t images, in_h, in_w, channels, features, taps_h, taps_w, out_h, out_w;
  int64_t stride, pad_h, pad_w;

  // Few channels would leave most of a block empty: then each patch becomes one pixel of all taps.
  bool unfolded() const { return channels < kBlock && taps_h * taps_w > 1; }
  int64_t band_taps_h() const { return unfolded() ? 1 : taps_h; }
  int64_t band_taps_w() const { return unfolded() ? 1 : taps_w; }
  int64_t band_stride() const { return unfolded() ? 1 : stride; }
  int64_t band_channels() const { return unfolded() ? taps_h * taps_w * channels : channels; }
  int64_t blocks() const { return CeilDiv(band_channels(), kBlock); }
  int64_t columns() const { return (out_w - 1) * band_stride() + band_taps_w(); }
  int64_t row_floats() const { return blocks() * columns() * kBlock; }
  int64_t band_rows(int64_t rows) const { return (rows - 1) * band_stride() + band_taps_h(); }
  int64_t band_floats(int64_t rows) const { return band_rows(rows) * row_floats(); }
  // Number of steps of kBlock channels behind one output value.
  int64_t depth() const { return band_taps_h() * blocks() * band_taps_w(); }
};

// The most pixels of a row of a flattened convolution.
constexpr int64_t kFlatPixels = 128;

// A convolution of 1x1 taps at stride 1 is a product over all pixels. Returns it as one of images of
// a single long row, whose tiles are full where rows of the given images may be shorter than a tile;
// or as it is, if the number of pixels has no divisor that makes rows longer.
inline Shape Flattened(Shape s) {
  if (s.taps_h * s.taps_w != 1 || s.stride != 1 || s.pad_h != 0 || s.pad_w != 0) return s;
  const int64_t pixels = s.images * s.out_h * s.out_w;
  int64_t width = std::min(pixels, kFlatPixels);
  while (width > s.out_w && pixels % width != 0) --width;
  if (width <= s.out_w) return s;
  s.images = pixels / width, s.in_h = s.out_h = 1, s.in_w = s.out_w = width;
  return s;
}

// How a convolution is split into tasks: several whole images, or several rows of one image.
struct Tasks {
  int64_t rows, images, bands, groups;

  Tasks(const Shape& s, int64_t floats) {
    rows = s.out_h;
    while (rows > 1 && s.band_floats(rows) > floats) rows = CeilDiv(rows, 2);
    bands = CeilDiv(s.out_h, rows);
    images = bands > 1 ? 1 : std::clamp<int64_t>(floats / s.band_floats(rows), 1, s.images);
    groups = CeilDiv(s.images, images);
  }
};

// Copies `count` channels of a pixel into its blocks; `step` floats lie between two blocks.
inline void CopyPixel(const float* from, int64_t count, float* to, int64_t step) {
  for (; count >= kBlock; count -= kBlock, from += kBlock, to += step)
    std::memcpy(to, from, kBlock * sizeof(float));
  if (count > 0) {
    std::memcpy(to, from, count * sizeof(float));
    std::memset(to + count, 0, (kBlock - count) * sizeof(float));
  }
}

inline void ZeroPixel(int64_t blocks, float* to, int64_t step) {
  for (int64_t b = 0; b < blocks; ++b, to += step) std::memset(to, 0, kBlock * sizeof(float));
}

// Copies `floats` floats, rounded up to whole vectors.
inline void CopyVectors(const float* from, int64_t floats, float* to) {
  for (int64_t k = 0; k < floats; k += kLanes) Store(to + k, Load(from + k));
}

// Copies the input of output rows [row, row + rows) of an image to [row][column][channel], with
// zeros around the image.
inline void CopyPadded(const Shape& s, const float* image, int64_t row, int64_t rows,
                       int64_t columns, float* to) {
  const int64_t first = std::clamp<int64_t>(s.pad_w, 0, columns);
  const int64_t last = std::clamp<int64_t>(s.in_w + s.pad_w, first, columns);
  for (int64_t r = 0; r < (rows - 1) * s.stride + s.taps_h; ++r, to += columns * s.channels) {
    const int64_t y = row * s.stride + r - s.pad_h;
    std::memset(to, 0, columns * s.channels * sizeof(float));
    if (y >= 0 && y < s.in_h)
      std::memcpy(to + first * s.channels,
                  image + (y * s.in_w + first - s.pad_w) * s.channels,
                  (last - first) * s.channels * sizeof(float));
  }
}

// Writes each patch of all taps and channels as one pixel. Patch rows are contiguous in the image.
inline void PackUnfolded(const Shape& s, const float* image, int64_t row, int64_t rows,
                         float* band) {
  static thread_local Arena padded_arena, patch_arena;
  const int64_t columns = (s.out_w - 1) * s.stride + s.taps_w, row_floats = columns * s.channels;
  const int64_t step = s.columns() * kBlock, run = s.taps_w * s.channels;
  const int64_t all = ((rows - 1) * s.stride + s.taps_h) * row_floats;
  // Runs are copied in whole vectors; each overwrites the excess of the previous one.
  float* padded = padded_arena.Get(all + kLanes);
  float* patch = patch_arena.Get(s.blocks() * kBlock + kLanes + kBlock);
  std::memset(padded + all, 0, kLanes * sizeof(float));
  CopyPadded(s, image, row, rows, columns, padded);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < s.out_w; ++c) {
      const float* from = padded + r * s.stride * row_floats + c * s.stride * s.channels;
      for (int64_t i = 0; i < s.taps_h; ++i)
        CopyVectors(from + i * row_floats, run, patch + i * run);
      ZeroPixel(1, patch + s.taps_h * run, kBlock);
      CopyPixel(patch, s.blocks() * kBlock, band + r * s.row_floats() + c * kBlock, step);
    }
  }
}

// Packs the input of output rows [row, row + rows) of an image [in_h, in_w, channels].
inline void PackBand(const Shape& s, const float* image, int64_t row, int64_t rows, float* band) {
  if (s.unfolded()) return PackUnfolded(s, image, row, rows, band);
  const int64_t columns = s.columns(), step = columns * kBlock;
  for (int64_t r = 0; r < s.band_rows(rows); ++r, band += s.row_floats()) {
    const int64_t y = row * s.stride + r - s.pad_h;
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t x = c - s.pad_w;
      if (y >= 0 && y < s.in_h && x >= 0 && x < s.in_w)
        CopyPixel(image + (y * s.in_w + x) * s.channels, s.channels, band + c * kBlock, step);
      else
        ZeroPixel(s.blocks(), band + c * kBlock, step);
    }
  }
}

}  // namespace hjepa

#endif  // HJEPA_KERNELS_BAND_H_
