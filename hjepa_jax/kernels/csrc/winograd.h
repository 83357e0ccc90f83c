// 3x3 convolutions at stride 1 by Winograd's minimal filtering F(M x M, 3x3), for the forward pass
// and both gradients: 2.25 times fewer multiplications for M = 2, 4 times for M = 4.
//
// Each tile of M x M outputs reads (M + 2)^2 inputs. After the transform these are as many
// independent matrix products of [tiles, channels] and [channels, features], in the layout that
// Tile and GradientTile read.
#ifndef HJEPA_KERNELS_WINOGRAD_H_
#define HJEPA_KERNELS_WINOGRAD_H_

#include "kernel_gradient.h"
#include "winograd_transforms.h"

namespace hjepa {

// Whether Winograd applies; it needs whole blocks of channels and whole vectors of features.
inline bool IsWinograd(const Shape& s) {
  return s.taps_h == 3 && s.taps_w == 3 && s.stride == 1 && s.channels % kBlock == 0 &&
         s.features % kLanes == 0 && s.pad_h <= 2 && s.pad_w <= 2;
}

// The M x M output tiles of all images, in row-major order.
template <int M>
struct Tiles {
  static constexpr int kIn = Winograd<M>::kIn, kPositions = kIn * kIn;
  int64_t down, across, all;

  explicit Tiles(const Shape& s)
      : down(CeilDiv(s.out_h, M)), across(CeilDiv(s.out_w, M)), all(s.images * down * across) {}

  // Calls f(t, image, first output row, first output column) for tiles first + t, 0 <= t < count.
  template <typename F>
  void For(int64_t first, int64_t count, const F& f) const {
    int64_t n = first / (down * across), row = first / across % down, column = first % across;
    for (int64_t t = 0; t < count; ++t) {
      f(t, n, M * row, M * column);
      if (++column < across) continue;
      column = 0;
      if (++row < down) continue;
      row = 0, ++n;
    }
  }
};

// Whether to use tiles of 4x4 outputs: where they need fewer multiplications, not for maps of 1, 2,
// 5 or 6 pixels. With more channels the transformed kernel outgrows the L2 cache.
inline bool IsLarge(const Shape& s) {
  return s.channels <= 128 && s.features <= 128 &&
         Tiles<4>(s).all * Tiles<4>::kPositions < Tiles<2>(s).all * Tiles<2>::kPositions;
}

// The same convolution as matrix products: the positions take the place of the taps.
template <int M>
Shape AsProducts(Shape s) {
  s.taps_h = Tiles<M>::kPositions, s.taps_w = 1;
  return s;
}

// Pixels between two positions of `count` tiles: odd, so that they fall into different cache sets.
inline int64_t Spacing(int64_t count) { return count | 1; }

// Transforms the input of `count` tiles into [position][block][Spacing(count)][16].
template <int M>
void PackTiles(const Shape& s, const Tiles<M>& tiles, const float* x, int64_t first, int64_t count,
               float* to) {
  constexpr int kIn = Winograd<M>::kIn;
  static constexpr float zeros[kLanes] = {};
  const int64_t spacing = Spacing(count), step = s.channels * spacing;
  tiles.For(first, count, [&](int64_t t, int64_t n, int64_t row, int64_t column) {
    const float* rows[kIn];
    for (int i = 0; i < kIn; ++i) {
      const int64_t y = row + i - s.pad_h;
      rows[i] = y < 0 || y >= s.in_h
                    ? nullptr
                    : x + ((n * s.in_h + y) * s.in_w + column - s.pad_w) * s.channels;
    }
    const int begin = std::clamp<int64_t>(s.pad_w - column, 0, kIn);
    const int end = std::clamp<int64_t>(s.in_w + s.pad_w - column, begin, kIn);
    for (int64_t c = 0; c < s.channels; c += kLanes) {
      Vec half[kIn][kIn] = {};
      for (int j = begin; j < end; ++j) {
        Vec d[kIn], out[kIn];
        for (int i = 0; i < kIn; ++i)
          d[i] = Load(rows[i] == nullptr ? zeros : rows[i] + j * s.channels + c);
        Winograd<M>::Input(d, out);
        for (int i = 0; i < kIn; ++i) half[i][j] = out[i];
      }
      float* position = to + (c / kBlock * spacing + t) * kBlock + c % kBlock;
      for (int i = 0; i < kIn; ++i) {
        Vec out[kIn];
        Winograd<M>::Input(half[i], out);
        for (int j = 0; j < kIn; ++j, position += step) Store(position, out[j]);
      }
    }
  });
}

// Packs G g G^T of a kernel as [panel][position][block][16][kPanel]. at(i, j, c, f) is its entry.
template <int M, typename At>
void PackWinogradKernel(ffi::ThreadPool& pool, const Shape& s, float* packed, const At& at) {
  constexpr int kIn = Winograd<M>::kIn;
  const int64_t panel_size = kIn * kIn * s.channels * kPanel;
  ParallelFor(pool, CeilDiv(s.features, kPanel) * s.blocks(), [&](int64_t task) {
    const int64_t panel = task / s.blocks(), first = task % s.blocks() * kBlock;
    const int64_t width = PanelVectors(s.features, panel) * kLanes;
    float* to = packed + panel * panel_size + first * width;
    float taps[3][3][kBlock * kPanel];
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j)
        CopyTap(s, at, i, j, first, panel * kPanel, width, taps[i][j]);
    for (int64_t c = 0; c < kBlock; ++c, to += width) {
      float rows[kIn][3][kPanel] = {};
      for (int j = 0; j < 3; ++j)
        for (int k = 0; k < 3; ++k)
          for (int64_t f = 0; f < width; ++f) {
            const float tap = taps[k][j][c * width + f];
            for (int i = 0; i < kIn; ++i)
              rows[i][j][f] += static_cast<float>(Winograd<M>::kTaps[i][k]) * tap;
          }
      float* position = to;
      for (int i = 0; i < kIn; ++i)
        for (int j = 0; j < kIn; ++j, position += s.channels * width) {
          const auto& g = Winograd<M>::kTaps[j];
          const float g0 = g[0], g1 = g[1], g2 = g[2];
          for (int64_t f = 0; f < width; ++f)
            position[f] = g0 * rows[i][0][f] + g1 * rows[i][1][f] + g2 * rows[i][2][f];
        }
    }
  });
}

// Writes the outputs A^T m A of a tile; the positions of m are `step` floats apart.
template <int M, int V>
void StoreTile(const Shape& s, const float* m, int64_t step, const Output& out, int64_t n,
               int64_t row, int64_t column, int64_t feature) {
  constexpr int kIn = Winograd<M>::kIn;
  const int height = std::min<int64_t>(M, s.out_h - row);
  const int width = std::min<int64_t>(M, s.out_w - column);
  for (int v = 0; v < V; ++v, m += kLanes, feature += kLanes) {
    Vec half[M][kIn];
    for (int j = 0; j < kIn; ++j) {
      Vec d[kIn], to[M];
      for (int i = 0; i < kIn; ++i) d[i] = Load(m + (i * kIn + j) * step);
      Winograd<M>::Output(d, to);
      for (int i = 0; i < M; ++i) half[i][j] = to[i];
    }
    float* to = out.data + n * out.image + row * out.row + column * out.pixel + feature;
    for (int i = 0; i < height; ++i, to += out.row) {
      Vec pixels[M];
      Winograd<M>::Output(half[i], pixels);
      for (int j = 0; j < width; ++j) Store(to + j * out.pixel, pixels[j]);
    }
  }
}

// out = correlation of x with a kernel packed by PackWinogradKernel.
template <int M>
void WinogradCorrelate(ffi::ThreadPool& pool, const Shape& s, const float* x, const float* packed,
                       const Output& out) {
  constexpr int kPositions = Tiles<M>::kPositions;
  const Tiles<M> tiles(s);
  const int64_t depth = kPositions * s.channels;
  const int64_t each = std::min(std::max<int64_t>(kBandFloats / depth, 2 * kPixels), tiles.all);
  ParallelFor(pool, CeilDiv(tiles.all, each), [&](int64_t task) {
    static thread_local Arena packed_arena, product_arena;
    const int64_t first = task * each, count = std::min(each, tiles.all - first);
    const int64_t spacing = Spacing(count);
    float* inputs = packed_arena.Get(depth * spacing);
    float* products = product_arena.Get(kPositions * spacing * kPanel);
    PackTiles<M>(s, tiles, x, first, count, inputs);
    for (int64_t panel = 0; panel < CeilDiv(s.features, kPanel); ++panel) {
      const int vectors = PanelVectors(s.features, panel);
      const int64_t width = vectors * kLanes;
      const float* kernel = packed + panel * depth * kPanel;
      for (int64_t i = 0; i < kPositions; ++i)
        CorrelateRow(count, 1,
                     {inputs + i * s.channels * spacing, kernel + i * s.channels * width,
                      products + i * spacing * width, 1, s.blocks(), 1, 0, spacing * kBlock, width,
                      width},
                     vectors);
      const auto store = vectors == 2 ? StoreTile<M, 2> : StoreTile<M, 1>;
      tiles.For(first, count, [&](int64_t t, int64_t n, int64_t y, int64_t z) {
        store(s, products + t * width, spacing * width, out, n, y, z, panel * kPanel);
      });
    }
  });
}

// Transforms the cotangents A bar A^T of `count` tiles of a panel into
// [position][Spacing(count)][V * kLanes].
template <int M, int V>
void PackBarTiles(const Shape& s, const Tiles<M>& tiles, const float* bar, int64_t first,
                  int64_t count, int64_t feature, float* to) {
  constexpr int kIn = Winograd<M>::kIn;
  tiles.For(first, count, [&](int64_t t, int64_t n, int64_t row, int64_t column) {
    const int height = std::min<int64_t>(M, s.out_h - row);
    const int width = std::min<int64_t>(M, s.out_w - column);
    const float* from = bar + ((n * s.out_h + row) * s.out_w + column) * s.features + feature;
    for (int v = 0; v < V; ++v, from += kLanes) {
      Vec half[kIn][M] = {};
      for (int j = 0; j < width; ++j) {
        Vec b[M] = {}, out[kIn];
        for (int i = 0; i < height; ++i) b[i] = Load(from + (i * s.out_w + j) * s.features);
        Winograd<M>::Bar(b, out);
        for (int i = 0; i < kIn; ++i) half[i][j] = out[i];
      }
      float* position = to + (t * V + v) * kLanes;
      for (int i = 0; i < kIn; ++i) {
        Vec out[kIn];
        Winograd<M>::Bar(half[i], out);
        for (int j = 0; j < kIn; ++j, position += Spacing(count) * V * kLanes)
          Store(position, out[j]);
      }
    }
  });
}

// Adds the products of the tiles [first, last) to the panels [first_panel, end_panel) of `sum`,
// which is packed like a kernel.
template <int M>
void AddTiles(const Shape& s, const Tiles<M>& tiles, const float* x, const float* bar,
              int64_t first, int64_t last, int64_t first_panel, int64_t end_panel, float* sum) {
  constexpr int kPositions = Tiles<M>::kPositions;
  static thread_local Arena input_arena, bar_arena;
  // `sum` is read and written once for each group of tiles, so groups must not be too small.
  const int64_t each = std::max<int64_t>(kBandFloats / (kPositions * s.channels), 64);
  for (; first < last; first += each) {
    const int64_t count = std::min(each, last - first), spacing = Spacing(count);
    float* inputs = input_arena.Get(kPositions * s.channels * spacing);
    float* bars = bar_arena.Get(kPositions * spacing * kPanel);
    PackTiles<M>(s, tiles, x, first, count, inputs);
    for (int64_t panel = first_panel; panel < end_panel; ++panel) {
      const int vectors = PanelVectors(s.features, panel);
      const int64_t width = vectors * kLanes;
      (vectors == 2 ? PackBarTiles<M, 2> : PackBarTiles<M, 1>)(s, tiles, bar, first, count,
                                                               panel * kPanel, bars);
      float* to = sum + panel * kPositions * s.channels * kPanel;
      for (int64_t i = 0; i < kPositions; ++i)
        for (int64_t c = 0; c < s.channels; c += kRows, to += kRows * width) {
          const int64_t block = i * s.blocks() + c / kBlock;
          ChooseGradientTile({inputs + block * spacing * kBlock + c % kBlock,
                              bars + i * spacing * width, to, 1, 1, count, 0, 0},
                             vectors, 1);
        }
    }
  }
}

// Writes G^T v G, the 9 taps of `width` features of one channel; v holds the positions.
template <int M>
void StoreTaps(const Shape& s, const float (*v)[kPanel], int64_t width, int64_t channel,
               int64_t feature, float* out) {
  constexpr int kIn = Winograd<M>::kIn;
  const auto& taps = Winograd<M>::kTaps;
  for (int i = 0; i < 3; ++i) {
    float half[kIn][kPanel] = {};
    for (int j = 0; j < kIn; ++j)
      for (int k = 0; k < kIn; ++k)
        for (int64_t f = 0; f < width; ++f)
          half[j][f] += static_cast<float>(taps[k][i]) * v[k * kIn + j][f];
    for (int j = 0; j < 3; ++j) {
      float total[kPanel] = {};
      for (int k = 0; k < kIn; ++k)
        for (int64_t f = 0; f < width; ++f)
          total[f] += static_cast<float>(taps[k][j]) * half[k][f];
      std::memcpy(out + ((3 * i + j) * s.channels + channel) * s.features + feature, total,
                  width * sizeof(float));
    }
  }
}

// out [3, 3, channels, features] = sum over images and pixels of x times bar.
template <int M>
void WinogradKernelGradient(ffi::ThreadPool& pool, const Shape& s, const float* x,
                            const float* bar, float* out) {
  constexpr int kPositions = Tiles<M>::kPositions;
  const Tiles<M> tiles(s);
  const int64_t panels = CeilDiv(s.features, kPanel), blocks = s.blocks();
  const int64_t panel_size = kPositions * s.channels * kPanel, size = panels * panel_size;
  const int64_t each = CeilDiv(tiles.all, Parts(AsProducts<M>(s)));
  const int64_t parts = CeilDiv(tiles.all, each);
  static thread_local Arena arena;
  float* sums = arena.Get(parts * size);
  const auto add = [&](int64_t part, int64_t first, int64_t end, float* sum) {
    AddTiles<M>(s, tiles, x, bar, part * each, std::min((part + 1) * each, tiles.all), first, end,
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
      StoreTaps<M>(s, total, width, c, panel * kPanel, out);
    }
  });
}

}  // namespace hjepa

#endif  // HJEPA_KERNELS_WINOGRAD_H_
