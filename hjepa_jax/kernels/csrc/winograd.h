// 3x3 convolutions at stride 1 with 2.25 times fewer multiplications: Winograd's minimal filtering
// F(2x2, 3x3), for the forward pass and both gradients. Source: Lavin & Gray, "Fast Algorithms for
// Convolutional Neural Networks" (arXiv 1509.09308), equations 8 to 12.
//
// Each tile of 2x2 outputs reads 4x4 inputs. After the transform these are 16 independent matrix
// products of [tiles, channels] and [channels, features], in the layout that Tile and GradientTile
// read.
#ifndef HJEPA_KERNELS_WINOGRAD_H_
#define HJEPA_KERNELS_WINOGRAD_H_

#include "kernel_gradient.h"

namespace hjepa {

constexpr int kPositions = 16;

// Whether Winograd applies; it needs whole blocks of channels and whole vectors of features.
inline bool IsWinograd(const Shape& s) {
  return s.taps_h == 3 && s.taps_w == 3 && s.stride == 1 && s.channels % kBlock == 0 &&
         s.features % kLanes == 0 && s.pad_h <= 2 && s.pad_w <= 2;
}

// The same convolution as matrix products: 16 positions take the place of the taps.
inline Shape AsProducts(Shape s) {
  s.taps_h = kPositions, s.taps_w = 1;
  return s;
}

// The 2x2 output tiles of all images, in row-major order.
struct Tiles {
  int64_t down, across, all;

  explicit Tiles(const Shape& s)
      : down(CeilDiv(s.out_h, 2)), across(CeilDiv(s.out_w, 2)), all(s.images * down * across) {}

  // Calls f(t, image, first output row, first output column) for tiles first + t, 0 <= t < count.
  template <typename F>
  void For(int64_t first, int64_t count, const F& f) const {
    int64_t n = first / (down * across), row = first / across % down, column = first % across;
    for (int64_t t = 0; t < count; ++t) {
      f(t, n, 2 * row, 2 * column);
      if (++column < across) continue;
      column = 0;
      if (++row < down) continue;
      row = 0, ++n;
    }
  }
};

// B^T d of equation 10, along one axis.
inline void TransformInput(Vec* d, int step) {
  const Vec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
  d[0] = d0 - d2, d[step] = d1 + d2, d[2 * step] = d2 - d1, d[3 * step] = d1 - d3;
}

// Transforms the input of `count` tiles into [position][block][tile][16].
inline void PackTiles(const Shape& s, const Tiles& tiles, const float* x, int64_t first,
                      int64_t count, float* to) {
  static thread_local Arena arena;
  float* zero = arena.Get(s.channels);
  std::memset(zero, 0, s.channels * sizeof(float));
  const int64_t step = s.channels * count;
  tiles.For(first, count, [&](int64_t t, int64_t n, int64_t row, int64_t column) {
    const float* from[kPositions];
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) {
        const int64_t y = row + i - s.pad_h, z = column + j - s.pad_w;
        const bool inside = y >= 0 && y < s.in_h && z >= 0 && z < s.in_w;
        from[4 * i + j] = inside ? x + ((n * s.in_h + y) * s.in_w + z) * s.channels : zero;
      }
    for (int64_t c = 0; c < s.channels; c += kLanes) {
      Vec d[kPositions];
      for (int i = 0; i < kPositions; ++i) d[i] = Load(from[i] + c);
      for (int j = 0; j < 4; ++j) TransformInput(d + j, 4);
      for (int i = 0; i < 4; ++i) TransformInput(d + 4 * i, 1);
      float* out = to + (c / kBlock * count + t) * kBlock + c % kBlock;
      for (int i = 0; i < kPositions; ++i, out += step) Store(out, d[i]);
    }
  });
}

// Packs G g G^T of a kernel as [panel][position][block][16][kPanel]. at(i, j, c, f) is its entry.
template <typename At>
void PackWinogradKernel(ffi::ThreadPool& pool, const Shape& s, float* packed, const At& at) {
  const int64_t panel_size = kPositions * s.channels * kPanel;
  ParallelFor(pool, CeilDiv(s.features, kPanel) * s.blocks(), [&](int64_t task) {
    const int64_t panel = task / s.blocks(), first = task % s.blocks() * kBlock;
    const int64_t width = PanelVectors(s.features, panel) * kLanes;
    float* to = packed + panel * panel_size + first * width;
    for (int64_t c = first; c < first + kBlock; ++c, to += width) {
      for (int64_t f = 0; f < width; ++f) {
        float rows[4][3];
        for (int j = 0; j < 3; ++j) {
          const int64_t feature = panel * kPanel + f;
          const float g0 = at(0, j, c, feature), g1 = at(1, j, c, feature);
          const float g2 = at(2, j, c, feature), even = 0.5f * (g0 + g2), odd = 0.5f * g1;
          rows[0][j] = g0, rows[1][j] = even + odd, rows[2][j] = even - odd, rows[3][j] = g2;
        }
        float* position = to + f;
        for (int i = 0; i < 4; ++i) {
          const float even = 0.5f * (rows[i][0] + rows[i][2]), odd = 0.5f * rows[i][1];
          for (float value : {rows[i][0], even + odd, even - odd, rows[i][2]}) {
            *position = value;
            position += s.channels * width;
          }
        }
      }
    }
  });
}

// Writes the outputs A^T m A of a tile; the 16 positions of m are `step` floats apart.
template <int V>
void StoreTile(const Shape& s, const float* m, int64_t step, const Output& out, int64_t n,
               int64_t row, int64_t column, int64_t feature) {
  for (int v = 0; v < V; ++v, m += kLanes, feature += kLanes) {
    Vec half[2][4];
    for (int j = 0; j < 4; ++j) {
      const Vec m0 = Load(m + j * step), m1 = Load(m + (4 + j) * step);
      const Vec m2 = Load(m + (8 + j) * step), m3 = Load(m + (12 + j) * step);
      half[0][j] = m0 + m1 + m2, half[1][j] = m1 - m2 - m3;
    }
    for (int i = 0; i < 2 && row + i < s.out_h; ++i) {
      const Vec* h = half[i];
      float* to = out.data + n * out.image + (row + i) * out.row + column * out.pixel + feature;
      Store(to, h[0] + h[1] + h[2]);
      if (column + 1 < s.out_w) Store(to + out.pixel, h[1] - h[2] - h[3]);
    }
  }
}

// out = correlation of x with a kernel packed by PackWinogradKernel.
inline void WinogradCorrelate(ffi::ThreadPool& pool, const Shape& s, const float* x,
                              const float* packed, const Output& out) {
  const Tiles tiles(s);
  const int64_t depth = kPositions * s.channels;
  const int64_t each = std::min(std::max<int64_t>(kBandFloats / depth, kPixels), tiles.all);
  ParallelFor(pool, CeilDiv(tiles.all, each), [&](int64_t task) {
    static thread_local Arena packed_arena, product_arena;
    const int64_t first = task * each, count = std::min(each, tiles.all - first);
    float* inputs = packed_arena.Get(depth * count);
    float* products = product_arena.Get(kPositions * count * kPanel);
    PackTiles(s, tiles, x, first, count, inputs);
    for (int64_t panel = 0; panel < CeilDiv(s.features, kPanel); ++panel) {
      const int vectors = PanelVectors(s.features, panel);
      const int64_t width = vectors * kLanes;
      const float* kernel = packed + panel * depth * kPanel;
      for (int64_t i = 0; i < kPositions; ++i)
        CorrelateRow(count, 1,
                     {inputs + i * s.channels * count, kernel + i * s.channels * width,
                      products + i * count * width, 1, s.blocks(), 1, 0, count * kBlock, width,
                      width},
                     vectors);
      const auto store = vectors == 2 ? StoreTile<2> : StoreTile<1>;
      tiles.For(first, count, [&](int64_t t, int64_t n, int64_t y, int64_t z) {
        store(s, products + t * width, count * width, out, n, y, z, panel * kPanel);
      });
    }
  });
}

// Transforms the cotangents A bar A^T of `count` tiles of a panel into [position][tile][width].
template <int V>
void PackBarTiles(const Shape& s, const Tiles& tiles, const float* bar, int64_t first,
                  int64_t count, int64_t feature, float* to) {
  tiles.For(first, count, [&](int64_t t, int64_t n, int64_t row, int64_t column) {
    for (int v = 0; v < V; ++v) {
      Vec b[2][2] = {};
      for (int i = 0; i < 2 && row + i < s.out_h; ++i)
        for (int j = 0; j < 2 && column + j < s.out_w; ++j)
          b[i][j] = Load(bar + ((n * s.out_h + row + i) * s.out_w + column + j) * s.features +
                         feature + v * kLanes);
      Vec half[4][2];
      for (int j = 0; j < 2; ++j) {
        half[0][j] = b[0][j], half[1][j] = b[0][j] + b[1][j];
        half[2][j] = b[0][j] - b[1][j], half[3][j] = -b[1][j];
      }
      float* out = to + (t * V + v) * kLanes;
      const int64_t step = count * V * kLanes;
      for (int i = 0; i < 4; ++i, out += 4 * step) {
        const Vec h0 = half[i][0], h1 = half[i][1];
        Store(out, h0), Store(out + step, h0 + h1);
        Store(out + 2 * step, h0 - h1), Store(out + 3 * step, -h1);
      }
    }
  });
}

// Adds the products of the tiles [first, last) to the panels [first_panel, end_panel) of `sum`,
// which is packed like a kernel.
inline void AddTiles(const Shape& s, const Tiles& tiles, const float* x, const float* bar,
                     int64_t first, int64_t last, int64_t first_panel, int64_t end_panel,
                     float* sum) {
  static thread_local Arena input_arena, bar_arena;
  // `sum` is read and written once for each group of tiles, so groups must not be too small.
  const int64_t each = std::max<int64_t>(kBandFloats / (kPositions * s.channels), 64);
  for (; first < last; first += each) {
    const int64_t count = std::min(each, last - first);
    float* inputs = input_arena.Get(kPositions * s.channels * count);
    float* bars = bar_arena.Get(kPositions * count * kPanel);
    PackTiles(s, tiles, x, first, count, inputs);
    for (int64_t panel = first_panel; panel < end_panel; ++panel) {
      const int vectors = PanelVectors(s.features, panel);
      const int64_t width = vectors * kLanes;
      (vectors == 2 ? PackBarTiles<2> : PackBarTiles<1>)(s, tiles, bar, first, count,
                                                         panel * kPanel, bars);
      float* to = sum + panel * kPositions * s.channels * kPanel;
      for (int64_t i = 0; i < kPositions; ++i)
        for (int64_t c = 0; c < s.channels; c += kRows, to += kRows * width) {
          const int64_t block = i * s.blocks() + c / kBlock;
          ChooseGradientTile({inputs + block * count * kBlock + c % kBlock,
                              bars + i * count * width, to, 1, 1, count, 0, 0},
                             vectors, 1);
        }
    }
  }
}

// Writes G^T v G, the 9 taps of `width` features of one channel; v holds the 16 positions.
inline void StoreTaps(const Shape& s, const float (*v)[kPanel], int64_t width, int64_t channel,
                      int64_t feature, float* out) {
  for (int64_t f = 0; f < width; ++f) {
    float half[3][4];
    for (int j = 0; j < 4; ++j) {
      const float v1 = v[4 + j][f], v2 = v[8 + j][f], even = 0.5f * (v1 + v2);
      half[0][j] = v[j][f] + even, half[1][j] = 0.5f * (v1 - v2), half[2][j] = even + v[12 + j][f];
    }
    for (int i = 0; i < 3; ++i) {
      const float* h = half[i];
      const float even = 0.5f * (h[1] + h[2]), taps[3] = {h[0] + even, 0.5f * (h[1] - h[2]),
                                                          even + h[3]};
      for (int j = 0; j < 3; ++j)
        out[((3 * i + j) * s.channels + channel) * s.features + feature + f] = taps[j];
    }
  }
}

// out [3, 3, channels, features] = sum over images and pixels of x times bar.
inline void WinogradKernelGradient(ffi::ThreadPool& pool, const Shape& s, const float* x,
                                   const float* bar, float* out) {
  const Tiles tiles(s);
  const int64_t panels = CeilDiv(s.features, kPanel), blocks = s.blocks();
  const int64_t panel_size = kPositions * s.channels * kPanel, size = panels * panel_size;
  const int64_t each = CeilDiv(tiles.all, Parts(AsProducts(s)));
  const int64_t parts = CeilDiv(tiles.all, each);
  static thread_local Arena arena;
  float* sums = arena.Get(parts * size);
  const auto add = [&](int64_t part, int64_t first, int64_t end, float* sum) {
    AddTiles(s, tiles, x, bar, part * each, std::min((part + 1) * each, tiles.all), first, end,
             sum);
  };
  SumParts(pool, parts, panels, panel_size, sums, add);
  ParallelFor(pool, panels * blocks, [&](int64_t task) {
    const int64_t panel = task / blocks, first = task % blocks * kBlock;
    const int64_t width = PanelVectors(s.features, panel) * kLanes;
    for (int64_t c = first; c < first + kBlock; ++c) {
      float total[kPositions][kPanel] = {};
      for (int64_t part = 0; part < parts; ++part)
        for (int i = 0; i < kPositions; ++i) {
          const float* from =
              sums + part * size + panel * panel_size + (i * s.channels + c) * width;
          for (int64_t f = 0; f < width; ++f) total[i][f] += from[f];
        }
      StoreTaps(s, total, width, c, panel * kPanel, out);
    }
  });
}

}  // namespace hjepa

#endif  // HJEPA_KERNELS_WINOGRAD_H_
