// The transforms of Winograd's minimal filtering F(M x M, 3x3), along one axis, for M = 2 and 4.
//
// Sources: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308);
// Toom-Cook's construction for any points: Barabasz et al., "Error Analysis and Improving the
// Accuracy of Winograd Convolution for Deep Neural Networks" (arXiv 1803.10986). F(4x4, 3x3) uses
// the points 0, +-sqrt(1/2), +-sqrt(2) and infinity, whose error is a fifth of that of the usual
// 0, +-1, +-2: 1e-6 of the largest output, where F(2x2, 3x3) has 4e-7.
#ifndef HJEPA_KERNELS_WINOGRAD_TRANSFORMS_H_
#define HJEPA_KERNELS_WINOGRAD_TRANSFORMS_H_

#include "common.h"

namespace hjepa {

template <int M>
struct Winograd;

template <>
struct Winograd<2> {
  static constexpr int kIn = 4;
  // G of equation 10: taps to positions.
  static constexpr double kTaps[kIn][3] = {{1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};

  // B^T d: inputs to positions.
  static void Input(const Vec* d, Vec* out) {
    out[0] = d[0] - d[2], out[1] = d[1] + d[2], out[2] = d[2] - d[1], out[3] = d[1] - d[3];
  }
  // A^T m: positions to outputs.
  static void Output(const Vec* m, Vec* out) {
    out[0] = m[0] + m[1] + m[2], out[1] = m[1] - m[2] - m[3];
  }
  // A b: outputs to positions.
  static void Bar(const Vec* b, Vec* out) {
    out[0] = b[0], out[1] = b[0] + b[1], out[2] = b[0] - b[1], out[3] = -b[1];
  }
};

template <>
struct Winograd<4> {
  static constexpr int kIn = 6;
  static constexpr double a = 0.70710678118654752440, b = 1.41421356237309504880;
  static constexpr double kTaps[kIn][3] = {
      {1, 0, 0},          {-2. / 3, -2 * a / 3, -1. / 3}, {-2. / 3, 2 * a / 3, -1. / 3},
      {1. / 6, b / 6, 1. / 3}, {1. / 6, -b / 6, 1. / 3},  {0, 0, 1}};
  static constexpr float kA = a, kB = b;

  static void Input(const Vec* d, Vec* out) {
    const Vec even_a = d[4] - 2.f * d[2], odd_a = kA * d[3] - kB * d[1];
    const Vec even_b = d[4] - .5f * d[2], odd_b = kB * d[3] - kA * d[1];
    out[0] = d[0] + d[4] - 2.5f * d[2];
    out[1] = even_a + odd_a, out[2] = even_a - odd_a;
    out[3] = even_b + odd_b, out[4] = even_b - odd_b;
    out[5] = d[1] + d[5] - 2.5f * d[3];
  }
  static void Output(const Vec* m, Vec* out) {
    const Vec even_a = m[1] + m[2], odd_a = kA * (m[1] - m[2]);
    const Vec even_b = m[3] + m[4], odd_b = kB * (m[3] - m[4]);
    out[0] = m[0] + even_a + even_b, out[1] = odd_a + odd_b;
    out[2] = .5f * even_a + 2.f * even_b, out[3] = .5f * odd_a + 2.f * odd_b + m[5];
  }
  static void Bar(const Vec* g, Vec* out) {
    const Vec even_a = g[0] + .5f * g[2], odd_a = kA * g[1] + (kA / 2) * g[3];
    const Vec even_b = g[0] + 2.f * g[2], odd_b = kB * g[1] + (kB * 2) * g[3];
    out[0] = g[0], out[5] = g[3];
    out[1] = even_a + odd_a, out[2] = even_a - odd_a;
    out[3] = even_b + odd_b, out[4] = even_b - odd_b;
  }
};

}  // namespace hjepa

#endif  // HJEPA_KERNELS_WINOGRAD_TRANSFORMS_H_
