// Layer normalization of [rows, channels] with the sum of a residual branch before it, and its
// gradient, each in one pass over memory.
//
// Own code because this is the hot path of transformers: XLA's fusions recompute the stream of
// residual sums from all earlier branches in every normalization, so that time grows with the square
// of the depth (benchmarks/RESULTS.md).

#include <cmath>
#include <vector>

#include "common.h"

namespace hjepa {

using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<ffi::Buffer<ffi::F32>>;

// Rows of a task. Fixed, so that sums over rows do not depend on the number of threads.
constexpr int64_t kTaskRows = 64;

// Sum over a row of f(c) in kLanes partial sums, and of the rest.
template <typename F, typename G>
inline float SumRow(int64_t channels, const F& vectors, const G& rest) {
  Vec sum[4] = {};
  int64_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes)
    for (int i = 0; i < 4; ++i) sum[i] += vectors(c + i * kLanes);
  for (; c + kLanes <= channels; c += kLanes) sum[0] += vectors(c);
  const Vec all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += all[i];
  for (; c < channels; ++c) total += rest(c);
  return total;
}

// stream = x + branch, y = (stream - mean) / deviation * scale + bias, row by row. Without a branch
// the stream is x.
static ffi::Error LayerNorm(ffi::ThreadPool pool, Array x, Array branch, Array scale, Array bias,
                            Result stream, Result y, Result mean, Result inverse, float epsilon) {
  const int64_t channels = scale.element_count(), rows = mean->element_count();
  const bool add = branch.element_count() > 0;
  AskForHugePages(y->typed_data(), y->element_count());
  AskForHugePages(stream->typed_data(), stream->element_count());
  const float *s = scale.typed_data(), *b = bias.typed_data();
  ParallelFor(pool, CeilDiv(rows, kTaskRows), [&](int64_t task) {
    const int64_t end = std::min(rows, (task + 1) * kTaskRows);
    for (int64_t row = task * kTaskRows; row < end; ++row) {
      const float* from = x.typed_data() + row * channels;
      if (add) {
        const float* more = branch.typed_data() + row * channels;
        float* sum = stream->typed_data() + row * channels;
        for (int64_t c = 0; c < channels; ++c) sum[c] = from[c] + more[c];
        from = sum;
      }
      const float m = SumRow(
                          channels, [&](int64_t c) { return Load(from + c); },
                          [&](int64_t c) { return from[c]; }) /
                      channels;
      const float squares = SumRow(
          channels, [&](int64_t c) { return (Load(from + c) - m) * (Load(from + c) - m); },
          [&](int64_t c) { return (from[c] - m) * (from[c] - m); });
      const float i = 1 / std::sqrt(squares / channels + epsilon);
      mean->typed_data()[row] = m, inverse->typed_data()[row] = i;
      float* to = y->typed_data() + row * channels;
      for (int64_t c = 0; c < channels; ++c) to[c] = (from[c] - m) * i * s[c] + b[c];
    }
  });
  return ffi::Error::Success();
}

// bar_stream = that of y's rows, and what else flows into the stream; adds the row's part of the
// gradients of scale and bias to `to_scale` and `to_bias`.
inline void RowGradient(int64_t channels, const float* stream, const float* bar, const float* more,
                        const float* scale, float mean, float inverse, float* to, float* to_scale,
                        float* to_bias) {
  const float sum = SumRow(
      channels, [&](int64_t c) { return Load(bar + c) * Load(scale + c); },
      [&](int64_t c) { return bar[c] * scale[c]; });
  const float product = SumRow(
      channels,
      [&](int64_t c) { return Load(bar + c) * Load(scale + c) * (Load(stream + c) - mean); },
      [&](int64_t c) { return bar[c] * scale[c] * (stream[c] - mean); });
  const float offset = sum / channels, slope = product * inverse * inverse / channels;
  for (int64_t c = 0; c < channels; ++c) {
    const float moved = stream[c] - mean;
    to[c] = inverse * (bar[c] * scale[c] - offset - moved * slope);
    to_scale[c] += bar[c] * (moved * inverse);
    to_bias[c] += bar[c];
  }
  if (more != nullptr)
    for (int64_t c = 0; c < channels; ++c) to[c] += more[c];
}

static ffi::Error LayerNormGradient(ffi::ThreadPool pool, Array stream, Array bar, Array more,
                                    Array scale, Array mean, Array inverse, Result bar_stream,
                                    Result bar_scale, Result bar_bias) {
  const int64_t channels = scale.element_count(), rows = mean.element_count();
  const int64_t tasks = CeilDiv(rows, kTaskRows);
  AskForHugePages(bar_stream->typed_data(), bar_stream->element_count());
  std::vector<float> parts(2 * tasks * channels, 0.0f);
  ParallelFor(pool, tasks, [&](int64_t task) {
    float* part = parts.data() + 2 * task * channels;
    const int64_t end = std::min(rows, (task + 1) * kTaskRows);
    for (int64_t row = task * kTaskRows; row < end; ++row) {
      const int64_t at = row * channels;
      RowGradient(channels, stream.typed_data() + at, bar.typed_data() + at,
                  more.element_count() > 0 ? more.typed_data() + at : nullptr, scale.typed_data(),
                  mean.typed_data()[row], inverse.typed_data()[row], bar_stream->typed_data() + at,
                  part, part + channels);
    }
  });
  std::vector<double> total(2 * channels, 0.0);
  for (int64_t task = 0; task < tasks; ++task)
    for (int64_t c = 0; c < 2 * channels; ++c) total[c] += parts[2 * task * channels + c];
  for (int64_t c = 0; c < channels; ++c) {
    bar_scale->typed_data()[c] = total[c];
    bar_bias->typed_data()[c] = total[channels + c];
  }
  return ffi::Error::Success();
}

}  // namespace hjepa

XLA_FFI_DEFINE_HANDLER_SYMBOL(hjepa_layer_norm, hjepa::LayerNorm,
                              hjepa::ffi::Ffi::Bind()
                                  .Ctx<hjepa::ffi::ThreadPool>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Ret<hjepa::Array>()
                                  .Ret<hjepa::Array>()
                                  .Ret<hjepa::Array>()
                                  .Ret<hjepa::Array>()
                                  .Attr<float>("epsilon"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(hjepa_layer_norm_gradient, hjepa::LayerNormGradient,
                              hjepa::ffi::Ffi::Bind()
                                  .Ctx<hjepa::ffi::ThreadPool>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Arg<hjepa::Array>()
                                  .Ret<hjepa::Array>()
                                  .Ret<hjepa::Array>()
                                  .Ret<hjepa::Array>());
