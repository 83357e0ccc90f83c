// The gradient of a convolution with respect to its kernel.
#ifndef HJEPA_KERNELS_KERNEL_GRADIENT_H_
#define HJEPA_KERNELS_KERNEL_GRADIENT_H_

#include "correlate.h"

namespace hjepa {

// Images are summed in a number of parts that does not depend on the number of threads, so the
// order of summation is fixed. Large kernels get few parts, since each part stores a whole kernel.
inline int64_t Parts(const Shape& s) {
  const int64_t floats = s.depth() * kBlock * CeilDiv(s.features, kPanel) * kPanel;
  return std::clamp<int64_t>((int64_t{1} << 20) / floats, 4, 32);
}

// Calls f(part, first panel, end panel, sum) in parallel for all parts and panels; f adds to `sum`,
// the part's zeroed [panels, panel_size]. The parts are contiguous in `sums`. Panels are split into
// groups only if threads would otherwise be idle, because each group packs the images again.
template <typename F>
void SumParts(ffi::ThreadPool& pool, int64_t parts, int64_t panels, int64_t panel_size, float* sums,
              const F& f) {
  const int64_t groups = std::clamp<int64_t>(CeilDiv(pool.num_threads(), parts), 1, panels);
  const int64_t each = CeilDiv(panels, groups);
  ParallelFor(pool, parts * CeilDiv(panels, each), [&](int64_t task) {
    const int64_t part = task % parts, first = task / parts * each;
    const int64_t end = std::min(first + each, panels);
    float* sum = sums + part * panels * panel_size;
    std::memset(sum + first * panel_size, 0, (end - first) * panel_size * sizeof(float));
    f(part, first, end, sum);
  });
}

struct GradientArguments {
  const float* band;  // first channel of the first pixel of a tap
  const float* bar;   // cotangents of a panel, [pixel][V * kLanes]
  float* sum;         // [kRows][V * kLanes], accumulated into
  int64_t images, rows, columns;
  int64_t band_image, band_row;  // floats between two images, and between two output rows
};

// kRows channels of a tap x V vectors of features, summed over all pixels of several images.
template <int V, int S>
void GradientTile(const GradientArguments& a) {
  Vec sum[kRows][V];
  for (int k = 0; k < kRows; ++k)
    for (int v = 0; v < V; ++v) sum[k][v] = Load(a.sum + (k * V + v) * kLanes);
  const float* bar = a.bar;
  for (int64_t n = 0; n < a.images; ++n) {
    for (int64_t r = 0; r < a.rows; ++r) {
      const float* x = a.band + n * a.band_image + r * a.band_row;
#pragma GCC unroll 4
      for (int64_t c = 0; c < a.columns; ++c, x += S * kBlock, bar += V * kLanes) {
        Vec bars[V];
        for (int v = 0; v < V; ++v) bars[v] = Load(bar + v * kLanes);
#pragma GCC unroll 16
        for (int k = 0; k < kRows; ++k)
#pragma GCC unroll 2
          for (int v = 0; v < V; ++v) sum[k][v] += x[k] * bars[v];
      }
    }
  }
  for (int k = 0; k < kRows; ++k)
    for (int v = 0; v < V; ++v) Store(a.sum + (k * V + v) * kLanes, sum[k][v]);
}

inline void ChooseGradientTile(const GradientArguments& a, int vectors, int64_t stride) {
  using Function = void (*)(const GradientArguments&);
  static constexpr Function table[2][2] = {{GradientTile<1, 1>, GradientTile<1, 2>},
                                           {GradientTile<2, 1>, GradientTile<2, 2>}};
  table[vectors - 1][stride - 1](a);
}

// Copies the cotangents of `pixels` pixels for one panel of features to [pixel][width].
inline void PackBar(const float* bar, int64_t features, int64_t first, int64_t width,
                    int64_t pixels, float* to) {
  const int64_t valid = std::min(width, features - first);
  for (int64_t i = 0; i < pixels; ++i, to += width) {
    std::memcpy(to, bar + i * features + first, valid * sizeof(float));
    std::memset(to + valid, 0, (width - valid) * sizeof(float));
  }
}

// Adds the products of the images [first, last) to the panels [first_panel, end_panel) of `sum`,
// which is packed like a kernel.
inline void AddImages(const Shape& s, const Tasks& tasks, const float* x, const float* bar,
                      int64_t first, int64_t last, int64_t first_panel, int64_t end_panel,
                      float* sum) {
  static thread_local Arena band_arena, bar_arena;
  const int64_t columns = s.columns() * kBlock;
  for (int64_t n = first; n < last; n += tasks.images) {
    const int64_t images = std::min(tasks.images, last - n);
    for (int64_t row = 0; row < s.out_h; row += tasks.rows) {
      const int64_t rows = std::min(tasks.rows, s.out_h - row), size = s.band_floats(rows);
      float* bands = band_arena.Get(images * size);
      float* bars = bar_arena.Get(images * rows * s.out_w * kPanel);
      for (int64_t i = 0; i < images; ++i)
        PackBand(s, x + (n + i) * s.in_h * s.in_w * s.channels, row, rows, bands + i * size);
      for (int64_t panel = first_panel; panel < end_panel; ++panel) {
        const int vectors = PanelVectors(s.features, panel);
        const int64_t width = vectors * kLanes;
        for (int64_t i = 0; i < images; ++i)
          PackBar(bar + ((n + i) * s.out_h + row) * s.out_w * s.features, s.features,
                  panel * kPanel, width, rows * s.out_w, bars + i * rows * s.out_w * width);
        float* to = sum + panel * s.depth() * kBlock * kPanel;
        for (int64_t i = 0; i < s.band_taps_h(); ++i)
          for (int64_t b = 0; b < s.blocks(); ++b)
            for (int64_t j = 0; j < s.band_taps_w(); ++j)
              for (int64_t k = 0; k < kBlock; k += kRows, to += kRows * width)
                ChooseGradientTile(
                    {bands + i * s.row_floats() + b * columns + j * kBlock + k, bars, to, images,
                     rows, s.out_w, size, s.band_stride() * s.row_floats()},
                    vectors, s.band_stride());
      }
    }
  }
}

// out [taps_h, taps_w, channels, features] = sum over images and pixels of x times bar.
inline void KernelGradient(ffi::ThreadPool& pool, const Shape& s, const float* x, const float* bar,
                           float* out) {
  const Tasks tasks(s, kBandFloats / 2);
  const int64_t panels = CeilDiv(s.features, kPanel);
  const int64_t panel_size = s.depth() * kBlock * kPanel, size = panels * panel_size;
  const int64_t each = CeilDiv(CeilDiv(s.images, Parts(s)), tasks.images) * tasks.images;
  const int64_t parts = CeilDiv(s.images, each);
  static thread_local Arena arena;
  float* sums = arena.Get(parts * size);
  const auto add = [&](int64_t part, int64_t first, int64_t end, float* sum) {
    AddImages(s, tasks, x, bar, part * each, std::min((part + 1) * each, s.images), first, end,
              sum);
  };
  SumParts(pool, parts, panels, panel_size, sums, add);
  const int64_t channels = s.band_channels();
  ParallelFor(pool, s.depth(), [&](int64_t step) {
    const int64_t j = step % s.band_taps_w(), b = step / s.band_taps_w() % s.blocks();
    const int64_t i = step / s.band_taps_w() / s.blocks();
    for (int64_t k = 0; k < kBlock && b * kBlock + k < channels; ++k) {
      const int64_t c = b * kBlock + k;
      float* to = out + ((i * s.band_taps_w() + j) * channels + c) * s.features;
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t width = PanelVectors(s.features, panel) * kLanes;
        const float* from = sums + panel * panel_size + (step * kBlock + k) * width;
        for (int64_t f = 0; f < std::min(width, s.features - panel * kPanel); ++f) {
          float total = 0;
          for (int64_t part = 0; part < parts; ++part) total += from[part * size + f];
          to[panel * kPanel + f] = total;
        }
      }
    }
  });
}

}  // namespace hjepa

#endif  // HJEPA_KERNELS_KERNEL_GRADIENT_H_
