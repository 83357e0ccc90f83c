// Convolutions of images on the CPU, as handlers of XLA's foreign function interface.
//
// Own code because this is the hot path: faster than XLA on CPUs (benchmarks/RESULTS.md).
//
// Arrays are float32: images [N, H, W, C], kernels [kh, kw, C, F]. Direct convolution copies a band
// of image rows into the cache once and accumulates tiles of pixels x features in registers over
// all taps and channels. Source of the scheme: Georganas et al., "Anatomy of High-Performance Deep
// Learning Convolutions on SIMD Architectures" (arXiv 1808.05567). 3x3 convolutions at stride 1,
// most of the work of a ResNet, need fewer multiplications (winograd.h).

#include "winograd.h"

namespace hjepa {

using Array4 = ffi::Buffer<ffi::F32, 4>;
using Result4 = ffi::Result<ffi::Buffer<ffi::F32, 4>>;

static Shape ShapeOf(ffi::Span<const int64_t> x, ffi::Span<const int64_t> kernel,
                     ffi::Span<const int64_t> y, int64_t stride, int64_t padding) {
  return {x[0],      x[1], x[2], x[3], kernel[3], kernel[0], kernel[1], y[1], y[2], stride,
          padding, padding};
}

// out = correlation of x with the kernel whose entries are at(i, j, c, f), by the faster method.
template <typename At>
void Convolve(ffi::ThreadPool& pool, Shape s, const float* x, Output out, const At& at) {
  if (out.row == s.out_w * out.pixel && out.image == s.out_h * out.row) {
    s = Flattened(s);
    out.row = s.out_w * out.pixel, out.image = s.out_h * out.row;
  }
  static thread_local Arena arena;
  const auto pack = [&](int64_t depth) {
    return arena.Get(depth * kBlock * CeilDiv(s.features, kPanel) * kPanel);
  };
  const auto by_winograd = [&](auto m) {
    float* packed = pack(AsProducts<m()>(s).depth());
    PackWinogradKernel<m()>(pool, s, packed, at);
    WinogradCorrelate<m()>(pool, s, x, packed, out);
  };
  if (!IsWinograd(s)) {
    float* packed = pack(s.depth());
    PackKernel(pool, s, packed, at);
    Correlate(pool, s, x, packed, out);
  } else if (IsLarge(s)) {
    by_winograd(std::integral_constant<int, 4>());
  } else {
    by_winograd(std::integral_constant<int, 2>());
  }
}

// Entries of a kernel in the taps and channels of its band.
struct Kernel {
  static constexpr bool transposed = false;
  const float* data;
  int64_t taps_w, channels, features;

  float operator()(int64_t i, int64_t j, int64_t c, int64_t f) const {
    return data[((i * taps_w + j) * channels + c) * features + f];
  }
};

static ffi::Error Forward(ffi::ThreadPool pool, Array4 x, Array4 kernel, Result4 y, int64_t stride,
                          int64_t padding) {
  const Shape s =
      ShapeOf(x.dimensions(), kernel.dimensions(), y->dimensions(), stride, padding);
  if (y->element_count() == 0) return ffi::Error::Success();
  AskForHugePages(y->typed_data(), y->element_count());
  const int64_t row = s.out_w * s.features;
  Convolve(pool, s, x.typed_data(), {y->typed_data(), s.out_h * row, row, s.features},
           Kernel{kernel.typed_data(), s.band_taps_w(), s.band_channels(), s.features});
  return ffi::Error::Success();
}

// The kernel taps that contribute to input pixels m*stride + phase, along one axis.
struct Phase {
  int64_t first, taps, padding, size;

  Phase(int64_t phase, int64_t stride, int64_t all, int64_t pad, int64_t in) {
    first = (phase + pad) % stride;
    taps = first < all ? CeilDiv(all - first, stride) : 0;
    padding = taps - 1 - (phase + pad - first) / stride;
    size = CeilDiv(in - phase, stride);
  }
};

// Entries of the correlation that gives a phase of the input: channels and features change places.
struct TransposedKernel {
  static constexpr bool transposed = true;
  const float* data;
  Shape s;
  Phase v, h;
  int64_t stride, taps_w;

  float operator()(int64_t i, int64_t j, int64_t c, int64_t f) const {
    if (s.unfolded()) {  // the channel index includes the taps
      i = c / s.channels / h.taps, j = c / s.channels % h.taps, c %= s.channels;
    }
    const int64_t tap_v = v.first + stride * (v.taps - 1 - i);
    const int64_t tap_h = h.first + stride * (h.taps - 1 - j);
    return data[((tap_v * taps_w + tap_h) * s.features + f) * s.channels + c];
  }
};

// The transposed convolution: one stride-1 correlation for each of the stride^2 pixel phases.
static ffi::Error InputGradient(ffi::ThreadPool pool, Array4 bar, Array4 kernel, Result4 x,
                                int64_t stride, int64_t padding) {
  const auto in = x->dimensions(), out = bar.dimensions(), k = kernel.dimensions();
  const int64_t channels = in[3], features = k[3], row = in[2] * channels;
  if (x->element_count() == 0) return ffi::Error::Success();
  AskForHugePages(x->typed_data(), x->element_count());
  bool covered = true;
  for (int64_t phase = 0; phase < stride; ++phase)
    covered &= (phase + padding) % stride < std::min(k[0], k[1]);
  if (!covered)
    ParallelFor(pool, in[0], [&](int64_t n) {
      std::memset(x->typed_data() + n * in[1] * row, 0, in[1] * row * sizeof(float));
    });
  for (int64_t phase = 0; phase < stride * stride; ++phase) {
    const Phase v(phase / stride, stride, k[0], padding, in[1]);
    const Phase h(phase % stride, stride, k[1], padding, in[2]);
    if (v.taps == 0 || h.taps == 0 || v.size <= 0 || h.size <= 0) continue;
    const Shape s{out[0], out[1], out[2], features, channels,  v.taps,
                  h.taps, v.size, h.size, 1,        v.padding, h.padding};
    float* first = x->typed_data() + (phase / stride) * row + (phase % stride) * channels;
    const Output to{first, in[1] * row, stride * row, stride * channels};
    Convolve(pool, s, bar.typed_data(), to,
             TransposedKernel{kernel.typed_data(), s, v, h, stride, k[1]});
  }
  return ffi::Error::Success();
}

static ffi::Error KernelGradientOf(ffi::ThreadPool pool, Array4 x, Array4 bar, Result4 kernel,
                                   int64_t stride, int64_t padding) {
  const Shape s = Flattened(
      ShapeOf(x.dimensions(), kernel->dimensions(), bar.dimensions(), stride, padding));
  const auto gradient = !IsWinograd(s) ? KernelGradient
                        : IsLarge(s)   ? WinogradKernelGradient<4>
                                       : WinogradKernelGradient<2>;
  gradient(pool, s, x.typed_data(), bar.typed_data(), kernel->typed_data());
  return ffi::Error::Success();
}

}  // namespace hjepa

#define HJEPA_HANDLER(name, function)                                       \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, hjepa::function,                      \
                                hjepa::ffi::Ffi::Bind()                     \
                                    .Ctx<hjepa::ffi::ThreadPool>()          \
                                    .Arg<hjepa::Array4>()                   \
                                    .Arg<hjepa::Array4>()                   \
                                    .Ret<hjepa::Array4>()                   \
                                    .Attr<int64_t>("stride")                \
                                    .Attr<int64_t>("padding"))

HJEPA_HANDLER(hjepa_convolution, Forward);
HJEPA_HANDLER(hjepa_convolution_input_gradient, InputGradient);
HJEPA_HANDLER(hjepa_convolution_kernel_gradient, KernelGradientOf);
