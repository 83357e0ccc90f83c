// Batch normalization of [rows, channels], fused with what follows it in a residual block: the sum
// with the block's input, and the ReLU. Each array is read from memory once for the statistics and
// once for the result. Statistics and results are handlers of their own, since the statistics of
// several devices' rows are added in between.
//
// Own code because this is the hot path: faster than XLA on CPUs (benchmarks/RESULTS.md).

#include <cmath>
#include <vector>

#include "common.h"

namespace hjepa {

using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<ffi::Buffer<ffi::F32>>;

constexpr int64_t kChunkFloats = 32 * 1024;  // 128 KiB: read twice, but only once from memory

struct Rows {
  int64_t count, channels, chunk;

  Rows(int64_t elements, int64_t c) : count(elements / c), channels(c) {
    chunk = std::max<int64_t>(1, kChunkFloats / c);
  }
  int64_t chunks() const { return CeilDiv(count, chunk); }
  int64_t size(int64_t i) const { return std::min(chunk, count - i * chunk); }
  int64_t at(int64_t i) const { return i * chunk * channels; }
};

// Calls f(first channel, V) with V = 4, 2 or 1 vectors of kLanes channels, V being a compile-time
// constant; then f(channel, 0) for each remaining channel.
template <typename F>
inline void ForChannels(int64_t channels, const F& f) {
  int64_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes) f(c, std::integral_constant<int, 4>());
  for (; c + 2 * kLanes <= channels; c += 2 * kLanes) f(c, std::integral_constant<int, 2>());
  for (; c + kLanes <= channels; c += kLanes) f(c, std::integral_constant<int, 1>());
  for (; c < channels; ++c) f(c, std::integral_constant<int, 0>());
}

// One value for each of the V * kLanes channels of a group, or for its single channel if V = 0.
template <int V>
struct Group {
  static constexpr int kSize = V;
  Vec v[V];
  explicit Group(const float* from) {
    for (int i = 0; i < V; ++i) v[i] = Load(from + i * kLanes);
  }
  Group() {
    for (int i = 0; i < V; ++i) v[i] = Vec{};
  }
  void Save(float* to) const {
    for (int i = 0; i < V; ++i) Store(to + i * kLanes, v[i]);
  }
};

template <>
struct Group<0> {
  static constexpr int kSize = 1;
  float v[1] = {0};
  explicit Group(const float* from) { v[0] = *from; }
  Group() {}
  void Save(float* to) const { *to = v[0]; }
};

template <typename T>
inline T Positive(T value, T where) {
  return where > 0 ? value : T{};
}

// Mean, and sum of squared deviations from it, of each channel of a chunk of x.
static void ChunkMoments(const Rows& rows, int64_t chunk, const float* x, float* mean, float* m2) {
  const int64_t n = rows.size(chunk), step = rows.channels;
  ForChannels(rows.channels, [&](int64_t c, auto vectors) {
    using G = Group<vectors()>;
    const float* first = x + rows.at(chunk) + c;
    G sum, squares;
    for (int64_t r = 0; r < n; ++r) {
      const G value(first + r * step);
      for (int i = 0; i < G::kSize; ++i) sum.v[i] += value.v[i];
    }
    for (int i = 0; i < G::kSize; ++i) sum.v[i] /= static_cast<float>(n);
    for (int64_t r = 0; r < n; ++r) {
      const G value(first + r * step);
      for (int i = 0; i < G::kSize; ++i) {
        const auto d = value.v[i] - sum.v[i];
        squares.v[i] += d * d;
      }
    }
    sum.Save(mean + c);
    squares.Save(m2 + c);
  });
}

// Mean and biased variance of each channel: chunks in parallel, merged in a fixed order (Chan,
// Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances").
static ffi::Error BatchNormMoments(ffi::ThreadPool pool, Array x, Result mean, Result variance) {
  const Rows rows(x.element_count(), mean->element_count());
  const int64_t channels = rows.channels, chunks = rows.chunks();
  std::vector<float> parts(2 * chunks * channels);
  ParallelFor(pool, chunks, [&](int64_t i) {
    float* part = parts.data() + 2 * i * channels;
    ChunkMoments(rows, i, x.typed_data(), part, part + channels);
  });
  std::vector<double> total(2 * channels, 0.0);
  for (int64_t i = 0; i < chunks; ++i) {
    const double before = i * rows.chunk, n = rows.size(i), after = before + n;
    const float* part = parts.data() + 2 * i * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const double delta = part[c] - total[c];
      total[c] += delta * n / after;
      total[channels + c] += part[channels + c] + delta * delta * before * n / after;
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    mean->typed_data()[c] = total[c];
    variance->typed_data()[c] = total[channels + c] / rows.count;
  }
  return ffi::Error::Success();
}

// y = x * factor + shift [+ residual], with or without ReLU, for one chunk.
template <bool kRelu, bool kResidual>
void Apply(const Rows& rows, int64_t chunk, const float* x, const float* residual,
           const float* factor, const float* shift, float* y) {
  const int64_t n = rows.size(chunk), step = rows.channels;
  ForChannels(rows.channels, [&](int64_t c, auto vectors) {
    using G = Group<vectors()>;
    const G f(factor + c), s(shift + c);
    for (int64_t r = 0, at = rows.at(chunk) + c; r < n; ++r, at += step) {
      G value(x + at);
      for (int i = 0; i < G::kSize; ++i) value.v[i] = value.v[i] * f.v[i] + s.v[i];
      if constexpr (kResidual) {
        const G more(residual + at);
        for (int i = 0; i < G::kSize; ++i) value.v[i] += more.v[i];
      }
      if constexpr (kRelu)
        for (int i = 0; i < G::kSize; ++i) value.v[i] = Positive(value.v[i], value.v[i]);
      value.Save(y + at);
    }
  });
}

static ffi::Error BatchNorm(ffi::ThreadPool pool, Array x, Array mean, Array variance, Array scale,
                            Array bias, Array residual, Result y, float epsilon, bool relu) {
  const Rows rows(x.element_count(), scale.element_count());
  std::vector<float> factor(rows.channels), shift(rows.channels);
  for (int64_t c = 0; c < rows.channels; ++c) {
    factor[c] = scale.typed_data()[c] / std::sqrt(variance.typed_data()[c] + epsilon);
    shift[c] = bias.typed_data()[c] - mean.typed_data()[c] * factor[c];
  }
  AskForHugePages(y->typed_data(), y->element_count());
  const bool add = residual.element_count() > 0;
  const auto apply = relu ? (add ? Apply<true, true> : Apply<true, false>)
                          : (add ? Apply<false, true> : Apply<false, false>);
  ParallelFor(pool, rows.chunks(), [&](int64_t i) {
    apply(rows, i, x.typed_data(), residual.typed_data(), factor.data(), shift.data(),
          y->typed_data());
  });
  return ffi::Error::Success();
}

// Sums over a chunk of g and of g * (x - mean), where g is the cotangent at the ReLU's input.
template <bool kRelu>
void ChunkSums(const Rows& rows, int64_t chunk, const float* x, const float* y, const float* bar,
               const float* mean, float* sum, float* product) {
  const int64_t n = rows.size(chunk), step = rows.channels;
  ForChannels(rows.channels, [&](int64_t c, auto vectors) {
    using G = Group<vectors()>;
    const G m(mean + c);
    G sums, products;
    for (int64_t r = 0, at = rows.at(chunk) + c; r < n; ++r, at += step) {
      const G value(x + at);
      G g(bar + at);
      if constexpr (kRelu) {
        const G out(y + at);
        for (int i = 0; i < G::kSize; ++i) g.v[i] = Positive(g.v[i], out.v[i]);
      }
      for (int i = 0; i < G::kSize; ++i) {
        sums.v[i] += g.v[i];
        products.v[i] += g.v[i] * (value.v[i] - m.v[i]);
      }
    }
    sums.Save(sum + c);
    products.Save(product + c);
  });
}

// The gradients of scale and bias: sums over all rows of g * (x - mean) / deviation, and of g.
static ffi::Error BatchNormSums(ffi::ThreadPool pool, Array x, Array y, Array bar, Array mean,
                                Array variance, Result bar_scale, Result bar_bias, float epsilon,
                                bool relu) {
  const Rows rows(x.element_count(), mean.element_count());
  const int64_t channels = rows.channels, chunks = rows.chunks();
  std::vector<float> parts(2 * chunks * channels);
  const auto sums = relu ? ChunkSums<true> : ChunkSums<false>;
  ParallelFor(pool, chunks, [&](int64_t i) {
    float* part = parts.data() + 2 * i * channels;
    sums(rows, i, x.typed_data(), y.typed_data(), bar.typed_data(), mean.typed_data(), part,
         part + channels);
  });
  std::vector<double> total(2 * channels, 0.0);
  for (int64_t i = 0; i < chunks; ++i)
    for (int64_t c = 0; c < 2 * channels; ++c) total[c] += parts[2 * i * channels + c];
  for (int64_t c = 0; c < channels; ++c) {
    const double inverse = 1 / std::sqrt(double{variance.typed_data()[c]} + epsilon);
    bar_scale->typed_data()[c] = total[channels + c] * inverse;
    bar_bias->typed_data()[c] = total[c];
  }
  return ffi::Error::Success();
}

// bar_x = factor * g - slope * (x - mean) - offset, and bar_residual = g, for one chunk.
template <bool kRelu, bool kResidual>
void ApplyGradient(const Rows& rows, int64_t chunk, const float* x, const float* y,
                   const float* bar, const float* mean, const float* factor, const float* slope,
                   const float* offset, float* bar_x, float* bar_residual) {
  const int64_t n = rows.size(chunk), step = rows.channels;
  ForChannels(rows.channels, [&](int64_t c, auto vectors) {
    using G = Group<vectors()>;
    const G m(mean + c), f(factor + c), s(slope + c), o(offset + c);
    for (int64_t r = 0, at = rows.at(chunk) + c; r < n; ++r, at += step) {
      G value(x + at), g(bar + at);
      if constexpr (kRelu) {
        const G out(y + at);
        for (int i = 0; i < G::kSize; ++i) g.v[i] = Positive(g.v[i], out.v[i]);
      }
      if constexpr (kResidual) g.Save(bar_residual + at);
      for (int i = 0; i < G::kSize; ++i)
        value.v[i] = f.v[i] * g.v[i] - s.v[i] * (value.v[i] - m.v[i]) - o.v[i];
      value.Save(bar_x + at);
    }
  });
}

// `to_scale` and `to_bias` are the results of BatchNormSums as means over the rows of all devices.
static ffi::Error BatchNormGradient(ffi::ThreadPool pool, Array x, Array y, Array bar, Array mean,
                                    Array variance, Array scale, Array to_scale, Array to_bias,
                                    Result bar_x, Result bar_residual, float epsilon, bool relu) {
  const Rows rows(x.element_count(), scale.element_count());
  std::vector<float> factor(rows.channels), slope(rows.channels), offset(rows.channels);
  for (int64_t c = 0; c < rows.channels; ++c) {
    const double inverse = 1 / std::sqrt(double{variance.typed_data()[c]} + epsilon);
    factor[c] = scale.typed_data()[c] * inverse;
    slope[c] = factor[c] * inverse * to_scale.typed_data()[c];
    offset[c] = factor[c] * to_bias.typed_data()[c];
  }
  AskForHugePages(bar_x->typed_data(), bar_x->element_count());
  AskForHugePages(bar_residual->typed_data(), bar_residual->element_count());
  const bool add = bar_residual->element_count() > 0;
  const auto apply = relu ? (add ? ApplyGradient<true, true> : ApplyGradient<true, false>)
                          : (add ? ApplyGradient<false, true> : ApplyGradient<false, false>);
  ParallelFor(pool, rows.chunks(), [&](int64_t i) {
    apply(rows, i, x.typed_data(), y.typed_data(), bar.typed_data(), mean.typed_data(),
          factor.data(), slope.data(), offset.data(), bar_x->typed_data(),
          bar_residual->typed_data());
  });
  return ffi::Error::Success();
}

}  // namespace hjepa

XLA_FFI_DEFINE_HANDLER_SYMBOL(hjepa_batch_norm_moments, hjepa::BatchNormMoments,
                              hjepa::ffi::Ffi::Bind()
                                  .Ctx<hjepa::ffi::ThreadPool>()
                                  .Arg<hjepa::Array>()
                                  .Ret<hjepa::Array>()
                                  .Ret<hjepa::Array>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(hjepa_batch_norm, hjepa::BatchNorm,
                              hjepa::ffi::Ffi::Bind()
                                  .Ctx<hjepa::ffi::ThreadPool>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Ret<hjepa::Array>()
                                  .Attr<float>("epsilon")
                                  .Attr<bool>("relu"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(hjepa_batch_norm_sums, hjepa::BatchNormSums,
                              hjepa::ffi::Ffi::Bind()
                                  .Ctx<hjepa::ffi::ThreadPool>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Ret<hjepa::Array>()
                                  .Ret<hjepa::Array>()
                                  .Attr<float>("epsilon")
                                  .Attr<bool>("relu"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(hjepa_batch_norm_gradient, hjepa::BatchNormGradient,
                              hjepa::ffi::Ffi::Bind()
                                  .Ctx<hjepa::ffi::ThreadPool>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Ret<hjepa::Array>()
                                  .Ret<hjepa::Array>()
                                  .Attr<float>("epsilon")
                                  .Attr<bool>("relu"));
