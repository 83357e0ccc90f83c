// Unfolding of images into the layout that the tiles of a convolution read.
//
// A band holds the input rows of some output rows, padded with zeros, as [row][block][column][16]:
// channels in blocks of kBlock, so that the distance between pixels is known when compiling.
#ifndef HJEPA_NATIVE_BAND_H_
#define HJEPA_NATIVE_BAND_H_

#include "common.h"

namespace hjepa {

// A convolution of x [images, in_h, in_w, channels] with taps_h x taps_w taps.
struct Shape {
  int64_t images, in_h, in_w, channels, features, taps_h, taps_w, out_h, out_w;
  int64_t stride, pad_h, pad_w;

  // Few channels would leave most of a block empty: then each patch is one pixel of all its taps.
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
  // Steps of kBlock channels in one output value.
  int64_t depth() const { return band_taps_h() * blocks() * band_taps_w(); }
};

// How a convolution is cut into tasks: some whole images, or some rows of one.
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

// Writes each patch of all taps and channels as one pixel. A row of a patch is a run of the image.
inline void PackUnfolded(const Shape& s, const float* image, int64_t row, int64_t rows,
                         float* band) {
  const int64_t step = s.columns() * kBlock, run = s.taps_w * s.channels;
  float* patch = static_cast<float*>(alloca(s.blocks() * kBlock * sizeof(float)));
  std::memset(patch, 0, s.blocks() * kBlock * sizeof(float));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < s.out_w; ++c) {
      const int64_t x = c * s.stride - s.pad_w;
      const int64_t left = std::max<int64_t>(0, -x) * s.channels;
      const int64_t right = std::min(s.taps_w, s.in_w - x) * s.channels;
      for (int64_t i = 0; i < s.taps_h; ++i) {
        const int64_t y = (row + r) * s.stride + i - s.pad_h;
        const float* from = image + (y * s.in_w + x) * s.channels;
        float* to = patch + i * run;
        const bool inside = y >= 0 && y < s.in_h;
        for (int64_t k = 0; k < run; ++k)
          to[k] = inside && k >= left && k < right ? from[k] : 0.0f;
      }
      float* to = band + r * s.row_floats() + c * kBlock;
      for (int64_t b = 0; b < s.blocks(); ++b, to += step)
        std::memcpy(to, patch + b * kBlock, kBlock * sizeof(float));
    }
  }
}

// Packs what the output rows [row, row + rows) of an image [in_h, in_w, channels] read.
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

#endif  // HJEPA_NATIVE_BAND_H_
