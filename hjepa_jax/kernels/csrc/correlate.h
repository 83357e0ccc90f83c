// Correlation of images with a kernel: the forward pass of a convolution and its input gradient.
#ifndef HJEPA_KERNELS_CORRELATE_H_
#define HJEPA_KERNELS_CORRELATE_H_

#include <array>
#include <utility>

#include "band.h"

namespace hjepa {

constexpr int64_t kBandFloats = 96 * 1024;  // 384 KiB, of an L2 cache of at least 512

// Number of vectors, 1 or 2, that hold the features [panel * kPanel, ...) of a panel.
inline int PanelVectors(int64_t features, int64_t panel) {
  return features - panel * kPanel > kLanes ? kVectors : 1;
}

// Copies a tap of the channels [channel, channel + kBlock) and `width` features to [kBlock][width],
// with zeros beyond the last ones. at(i, j, c, f) is an entry in the band's taps and channels. The
// loops follow the order in memory: of a transposed kernel, channels lie together.
template <typename At>
void CopyTap(const Shape& s, const At& at, int64_t i, int64_t j, int64_t channel, int64_t feature,
             int64_t width, float* to) {
  const int64_t channels = std::min<int64_t>(kBlock, s.band_channels() - channel);
  const int64_t features = std::min(width, s.features - feature);
  if (channels < kBlock || features < width) std::memset(to, 0, kBlock * width * sizeof(float));
  if (at.transposed) {
    for (int64_t f = 0; f < features; ++f)
      for (int64_t k = 0; k < channels; ++k)
        to[k * width + f] = at(i, j, channel + k, feature + f);
  } else {
    for (int64_t k = 0; k < channels; ++k)
      for (int64_t f = 0; f < features; ++f)
        to[k * width + f] = at(i, j, channel + k, feature + f);
  }
}

// Packs a kernel as [panel][tap row][block][tap column][16][kPanel], padded with zeros; panels are
// packed in parallel.
template <typename At>
void PackKernel(ffi::ThreadPool& pool, const Shape& s, float* packed, const At& at) {
  ParallelFor(pool, CeilDiv(s.features, kPanel), [&](int64_t panel) {
    const int64_t width = PanelVectors(s.features, panel) * kLanes;
    float* to = packed + panel * s.depth() * kBlock * kPanel;
    for (int64_t i = 0; i < s.band_taps_h(); ++i)
      for (int64_t b = 0; b < s.blocks(); ++b)
        for (int64_t j = 0; j < s.band_taps_w(); ++j, to += kBlock * width)
          CopyTap(s, at, i, j, b * kBlock, panel * kPanel, width, to);
  });
}

struct TileArguments {
  const float* band;     // first tap of the first pixel
  const float* kernel;   // a packed panel
  float* out;            // first feature of the panel at the first pixel
  int64_t taps_h, blocks, taps_w, row_floats, block_floats;
  int64_t out_pixel;     // floats between two pixels of the output
  int64_t valid;         // features in the panel, without padding
};

// P adjacent pixels of one row x V vectors of features.
template <int P, int V, int S>
void Tile(const TileArguments& a) {
  Vec sum[P][V];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sum[p][v] = Vec{};
  const float* w = a.kernel;
  for (int64_t i = 0; i < a.taps_h; ++i) {
    for (int64_t b = 0; b < a.blocks; ++b) {
      for (int64_t j = 0; j < a.taps_w; ++j) {
        const float* x = a.band + i * a.row_floats + b * a.block_floats + j * kBlock;
#pragma GCC unroll 4
        for (int k = 0; k < kBlock; ++k, w += V * kLanes) {
          Vec weights[V];
          for (int v = 0; v < V; ++v) weights[v] = Load(w + v * kLanes);
#pragma GCC unroll 16
          for (int p = 0; p < P; ++p) {
            const float value = x[p * S * kBlock + k];
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) sum[p][v] += value * weights[v];
          }
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
    float* out = a.out + p * a.out_pixel;
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const Vec value = sum[p][v];
      const int64_t valid = a.valid - v * kLanes;
      if (valid >= kLanes) {
        Store(out + v * kLanes, value);
      } else if (valid > 0) {
        std::memcpy(out + v * kLanes, &value, valid * sizeof(float));
      }
    }
  }
}

using TileFunction = void (*)(const TileArguments&);

template <int V, int S, int... P>
constexpr std::array<TileFunction, kPixels> TileTable(std::integer_sequence<int, P...>) {
  return {Tile<P + 1, V, S>...};
}

// Returns the tile for 1 <= pixels <= kPixels, 1 or 2 vectors and stride 1 or 2.
inline TileFunction ChooseTile(int64_t pixels, int vectors, int64_t stride) {
  constexpr auto sizes = std::make_integer_sequence<int, kPixels>();
  static constexpr std::array<TileFunction, kPixels> tables[2][2] = {
      {TileTable<1, 1>(sizes), TileTable<1, 2>(sizes)},
      {TileTable<2, 1>(sizes), TileTable<2, 2>(sizes)}};
  return tables[vectors - 1][stride - 1][pixels - 1];
}

// Output of a correlation: pixel (n, i, j) starts at data + n*image + i*row + j*pixel.
struct Output {
  float* data;
  int64_t image, row, pixel;
};

// A row of `width` pixels for one panel of features, split into tiles of nearly equal size.
inline void CorrelateRow(int64_t width, int64_t stride, TileArguments a, int vectors) {
  const int64_t tiles = CeilDiv(width, kPixels);
  for (int64_t t = 0, column = 0; t < tiles; ++t) {
    const int64_t pixels = CeilDiv(width - column, tiles - t);
    ChooseTile(pixels, vectors, stride)(a);
    a.band += pixels * stride * kBlock;
    a.out += pixels * a.out_pixel;
    column += pixels;
  }
}

// out = correlation of x with a packed kernel.
inline void Correlate(ffi::ThreadPool& pool, const Shape& s, const float* x, const float* packed,
                      const Output& out) {
  const Tasks tasks(s, kBandFloats);
  ParallelFor(pool, tasks.groups * tasks.bands, [&](int64_t task) {
    static thread_local Arena arena;
    const int64_t first = task / tasks.bands * tasks.images, row = task % tasks.bands * tasks.rows;
    const int64_t images = std::min(tasks.images, s.images - first);
    const int64_t rows = std::min(tasks.rows, s.out_h - row);
    const int64_t size = s.band_floats(rows);
    float* bands = arena.Get(images * size);
    for (int64_t n = 0; n < images; ++n)
      PackBand(s, x + (first + n) * s.in_h * s.in_w * s.channels, row, rows, bands + n * size);
    for (int64_t panel = 0; panel < CeilDiv(s.features, kPanel); ++panel) {
      const int vectors = PanelVectors(s.features, panel);
      const int64_t valid = std::min<int64_t>(s.features - panel * kPanel, vectors * kLanes);
      const float* kernel = packed + panel * s.depth() * kBlock * kPanel;
      for (int64_t n = 0; n < images; ++n) {
        for (int64_t r = 0; r < rows; ++r) {
          const float* band = bands + n * size + r * s.band_stride() * s.row_floats();
          float* to = out.data + (first + n) * out.image + (row + r) * out.row + panel * kPanel;
          CorrelateRow(s.out_w, s.band_stride(),
                       {band, kernel, to, s.band_taps_h(), s.blocks(), s.band_taps_w(),
                        s.row_floats(), s.columns() * kBlock, out.pixel, valid},
                       vectors);
        }
      }
    }
  });
}

}  // namespace hjepa

#endif  // HJEPA_KERNELS_CORRELATE_H_
