// The k largest values of every row, largest first, equal ones by index: what lax.top_k computes.
//
// A row is read once. Values above the k-th largest so far are collected, and the collection is cut
// to its k best whenever it is full, so that nearly all values cost one comparison.

#include <functional>
#include <limits>
#include <vector>

#include "common.h"

namespace hjepa {

using Matrix = ffi::Buffer<ffi::F32, 2>;
using Indices = ffi::Buffer<ffi::S32, 2>;

constexpr int64_t kRun = 64;  // values compared before any of them is looked at

// An integer that orders like the float; NaN is above infinity.
inline int32_t Key(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  bits ^= (bits >> 31) & 0x7fffffff;
  return std::max(bits, std::numeric_limits<int32_t>::min() + 1);
}

// Larger for larger keys, then for lower indices.
inline uint64_t Candidate(int32_t key, int64_t index) {
  const uint32_t high = static_cast<uint32_t>(key) ^ 0x80000000u;
  return uint64_t{high} << 32 | static_cast<uint32_t>(~index);
}

inline int32_t KeyOf(uint64_t candidate) {
  return static_cast<int32_t>(static_cast<uint32_t>(candidate >> 32) ^ 0x80000000u);
}

// The k best candidates of a row [count], in order, in found[0..k).
static void LargestOf(const float* row, int64_t count, int64_t k, std::vector<uint64_t>& found) {
  const size_t capacity = 2 * k + 1024;
  int32_t threshold = std::numeric_limits<int32_t>::min();
  const auto cut = [&] {
    std::nth_element(found.begin(), found.begin() + k - 1, found.end(), std::greater<>());
    found.resize(k);
    // What comes later loses to an equal value.
    threshold = KeyOf(found[k - 1]);
  };
  found.clear();
  for (int64_t start = 0; start < count; start += kRun) {
    const int64_t end = std::min(start + kRun, count);
    int any = 0;
    for (int64_t i = start; i < end; ++i) any |= Key(row[i]) > threshold;
    if (!any) continue;
    for (int64_t i = start; i < end; ++i)
      if (Key(row[i]) > threshold) found.push_back(Candidate(Key(row[i]), i));
    if (found.size() >= capacity) cut();
  }
  if (found.size() > static_cast<size_t>(k)) cut();
  std::sort(found.begin(), found.end(), std::greater<>());
}

static ffi::Error TopK(ffi::ThreadPool pool, Matrix x, ffi::Result<Matrix> values,
                       ffi::Result<Indices> indices) {
  const int64_t rows = x.dimensions()[0], count = x.dimensions()[1];
  const int64_t k = values->dimensions()[1];
  if (k < 1 || k > count) return ffi::Error::InvalidArgument("k must be in 1..columns");
  ParallelFor(pool, rows, [&](int64_t r) {
    static thread_local std::vector<uint64_t> found;
    const float* row = x.typed_data() + r * count;
    LargestOf(row, count, k, found);
    for (int64_t i = 0; i < k; ++i) {
      const int32_t index = static_cast<int32_t>(~static_cast<uint32_t>(found[i]));
      values->typed_data()[r * k + i] = row[index];
      indices->typed_data()[r * k + i] = index;
    }
  });
  return ffi::Error::Success();
}

}  // namespace hjepa

XLA_FFI_DEFINE_HANDLER_SYMBOL(hjepa_top_k, hjepa::TopK,
                              hjepa::ffi::Ffi::Bind()
                                  .Ctx<hjepa::ffi::ThreadPool>()
                                  .Arg<hjepa::Matrix>()
                                  .Ret<hjepa::Matrix>()
                                  .Ret<hjepa::Indices>());
