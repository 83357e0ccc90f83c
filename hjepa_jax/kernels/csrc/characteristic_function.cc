// The empirical characteristic function at equally spaced frequencies: for every column of y
// [views, rows, columns] the means over rows of cos(t y) and sin(t y), t = start + step * j.
//
// Each value is read once; its cosine and sine are computed once and then rotated by angle
// addition, in registers. Sums of kRun rows are accumulated in double precision, so that rounding
// errors do not grow with the number of rows; the order of summation does not depend on the number
// of threads.
//
// Own code because this is the hot path: faster than XLA on CPUs (benchmarks/RESULTS.md).

#include <cmath>
#include <vector>

#include "common.h"

namespace hjepa {

using Projections = ffi::Buffer<ffi::F32, 3>;
using Means = ffi::Result<Projections>;

constexpr int kTogether = 4;  // rows whose angles are rotated side by side
constexpr int64_t kRun = 64;

typedef int32_t IntVec __attribute__((vector_size(kLanes * sizeof(int32_t))));

// Larger angles lose digits in the range reduction below.
constexpr float kLargest = 8192.0f;

struct CosSin {
  Vec cosine, sine;
};

inline Vec Select(IntVec where, Vec yes, Vec no) { return where ? yes : no; }

// Angles that are too large for the reduction, infinite or NaN, one by one.
static void __attribute__((noinline)) SlowPhase(const Vec& angle, CosSin* phase) {
  for (int i = 0; i < kLanes; ++i) {
    phase->cosine[i] = std::cos(angle[i]);
    phase->sine[i] = std::sin(angle[i]);
  }
}

// Whether any angle is beyond kLargest in magnitude or NaN.
inline bool AnyLarge(const Vec* values, float factor) {
  IntVec large{};
  for (int r = 0; r < kTogether; ++r) {
    const Vec angle = values[r] * factor;
    large |= ~((angle <= kLargest) & (angle >= -kLargest));
  }
  int any = 0;
  for (int i = 0; i < kLanes; ++i) any |= large[i];
  return any != 0;
}

// Cosine and sine, to about one unit in the last place. The angle is reduced to [-pi/4, pi/4] by
// subtracting a multiple of pi/2 in three parts (Cody and Waite) whose products are exact even
// without fused multiply-add; on that interval Taylor series suffice.
inline CosSin PhaseOf(Vec angle) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vec shifted = angle * 0.636619772f + kRound;
  const Vec turns = shifted - kRound;
  IntVec quadrant;
  std::memcpy(&quadrant, &shifted, sizeof(quadrant));
  Vec x = angle - turns * 1.5703125f;
  x = x - turns * 4.837512969970703125e-4f;
  x = x - turns * 7.54978995489188216e-8f;
  const Vec square = x * x;
  Vec s = square * 2.7557319e-6f - 1.98412698e-4f;
  s = s * square + 8.33333333e-3f;
  s = s * square - 1.66666667e-1f;
  s = s * (square * x) + x;
  Vec c = square * -2.7557319e-7f + 2.48015873e-5f;
  c = c * square - 1.38888889e-3f;
  c = c * square + 4.16666667e-2f;
  c = c * (square * square) + (1.0f - 0.5f * square);
  const IntVec swapped = (quadrant & 1) != 0;
  const Vec cosine = Select(swapped, s, c), sine = Select(swapped, c, s);
  return {Select(((quadrant + 1) & 2) != 0, -cosine, cosine),
          Select((quadrant & 2) != 0, -sine, sine)};
}

inline void PhasesOf(const Vec* values, float factor, CosSin* phases) {
  if (__builtin_expect(AnyLarge(values, factor), 0)) {
    for (int r = 0; r < kTogether; ++r) SlowPhase(values[r] * factor, &phases[r]);
  } else {
    for (int r = 0; r < kTogether; ++r) phases[r] = PhaseOf(values[r] * factor);
  }
}

struct Frequencies {
  float start, step;
  int64_t count;
};

// Adds the cosines and sines of the first `rows` of kTogether rows to sums [count, 2, kLanes].
inline void AddRows(const Frequencies& f, const Vec* values, int64_t rows, float* sums) {
  CosSin phases[kTogether], turns[kTogether];
  PhasesOf(values, f.step, turns);
  std::copy_n(turns, kTogether, phases);
  if (f.start != f.step) PhasesOf(values, f.start, phases);
  Vec cosine[kTogether], sine[kTogether];
  for (int r = 0; r < kTogether; ++r) {
    // A phase vector of zero stays zero under every rotation.
    const float counted = r < rows;
    cosine[r] = phases[r].cosine * counted, sine[r] = phases[r].sine * counted;
  }
  for (int64_t j = 0; j < f.count; ++j, sums += 2 * kLanes) {
    Store(sums, Load(sums) + ((cosine[0] + cosine[1]) + (cosine[2] + cosine[3])));
    Store(sums + kLanes, Load(sums + kLanes) + ((sine[0] + sine[1]) + (sine[2] + sine[3])));
    for (int r = 0; r < kTogether; ++r) {
      const Vec turned = cosine[r] * turns[r].cosine - sine[r] * turns[r].sine;
      sine[r] = sine[r] * turns[r].cosine + cosine[r] * turns[r].sine;
      cosine[r] = turned;
    }
  }
}

// totals [count, 2, kLanes] = sums over the rows of the `width` columns at y.
static void SumColumns(const Frequencies& f, const float* y, int64_t rows, int64_t columns,
                       int64_t width, float* sums, double* totals) {
  const int64_t size = f.count * 2 * kLanes;
  std::fill_n(totals, size, 0.0);
  for (int64_t begin = 0; begin < rows; begin += kRun) {
    std::fill_n(sums, size, 0.0f);
    const int64_t end = std::min(begin + kRun, rows);
    for (int64_t r = begin; r < end; r += kTogether) {
      Vec values[kTogether] = {};
      const int64_t present = std::min<int64_t>(kTogether, end - r);
      for (int64_t i = 0; i < present; ++i)
        std::memcpy(&values[i], y + (r + i) * columns, width * sizeof(float));
      AddRows(f, values, present, sums);
    }
    for (int64_t i = 0; i < size; ++i) totals[i] += sums[i];
  }
}

static ffi::Error CharacteristicFunction(ffi::ThreadPool pool, Projections y, Means cosines,
                                         Means sines, float start, float step) {
  const int64_t views = y.dimensions()[0], rows = y.dimensions()[1], columns = y.dimensions()[2];
  const Frequencies f{start, step, cosines->dimensions()[0]};
  const int64_t blocks = CeilDiv(columns, kLanes);
  ParallelFor(pool, views * blocks, [&](int64_t task) {
    static thread_local std::vector<float> sums;
    static thread_local std::vector<double> totals;
    sums.resize(f.count * 2 * kLanes);
    totals.resize(sums.size());
    const int64_t view = task / blocks, column = task % blocks * kLanes;
    const int64_t width = std::min<int64_t>(kLanes, columns - column);
    SumColumns(f, y.typed_data() + view * rows * columns + column, rows, columns, width,
               sums.data(), totals.data());
    for (int64_t j = 0; j < f.count; ++j)
      for (int64_t i = 0; i < width; ++i) {
        const int64_t at = (j * views + view) * columns + column + i;
        const double* total = totals.data() + j * 2 * kLanes + i;
        cosines->typed_data()[at] = static_cast<float>(total[0] / rows);
        sines->typed_data()[at] = static_cast<float>(total[kLanes] / rows);
      }
  });
  return ffi::Error::Success();
}

}  // namespace hjepa

XLA_FFI_DEFINE_HANDLER_SYMBOL(hjepa_characteristic_function, hjepa::CharacteristicFunction,
                              hjepa::ffi::Ffi::Bind()
                                  .Ctx<hjepa::ffi::ThreadPool>()
                                  .Arg<hjepa::Projections>()
                                  .Ret<hjepa::Projections>()
                                  .Ret<hjepa::Projections>()
                                  .Attr<float>("start")
                                  .Attr<float>("step"));
