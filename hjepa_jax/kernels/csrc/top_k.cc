// Merges the columns of a block into the k largest values of every row so far.
//
// Own code because this is the hot path: faster than XLA on CPUs (benchmarks/RESULTS.md).
//
// A row is read once. Values above the k-th largest so far are collected, and the collection is cut
// to its k largest whenever it is full, so that nearly all values cost one comparison.

#include <functional>
#include <limits>
#include <vector>

#include "common.h"

namespace hjepa {

using Matrix = ffi::Buffer<ffi::F32, 2>;
using Indices = ffi::Buffer<ffi::S32, 2>;
using Columns = ffi::Buffer<ffi::S32, 1>;

constexpr int64_t kRun = 64;  // values compared to the threshold at once

// Maps the bits of a float to an integer that orders like the float, and back.
inline int32_t Ordered(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

// Returns an integer that orders like the float; NaN is above infinity.
inline int32_t Key(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return std::max(Ordered(bits), std::numeric_limits<int32_t>::min() + 1);
}

// Orders by key; of equal keys the lower index is the larger candidate.
inline uint64_t Candidate(int32_t key, int64_t index) {
  const uint32_t high = static_cast<uint32_t>(key) ^ 0x80000000u;
  return uint64_t{high} << 32 | static_cast<uint32_t>(~index);
}

inline float ValueOf(int32_t key) {
  const int32_t bits = Ordered(key);
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline int32_t KeyOf(uint64_t candidate) {
  return static_cast<int32_t>(static_cast<uint32_t>(candidate >> 32) ^ 0x80000000u);
}

// Merges a row [count], whose columns have the given indices, into the k best candidates in
// `found`, which are sorted afterward.
static void MergeRow(const float* row, const int32_t* indices, int64_t count, size_t k,
                     std::vector<uint64_t>& found) {
  const size_t capacity = 2 * k + 1024;
  int32_t threshold = KeyOf(found[k - 1]);
  const auto cut = [&] {
    std::nth_element(found.begin(), found.begin() + k - 1, found.end(), std::greater<>());
    found.resize(k);
    // A later value loses to an equal one, so only larger values qualify.
    threshold = KeyOf(found[k - 1]);
  };
  for (int64_t start = 0; start < count; start += kRun) {
    const int64_t end = std::min(start + kRun, count);
    int any = 0;
    for (int64_t i = start; i < end; ++i) any |= Key(row[i]) > threshold;
    if (!any) continue;
    for (int64_t i = start; i < end; ++i)
      if (Key(row[i]) > threshold) found.push_back(Candidate(Key(row[i]), indices[i]));
    if (found.size() >= capacity) cut();
  }
  if (found.size() > k) cut();
  std::sort(found.begin(), found.end(), std::greater<>());
}

static ffi::Error MergeTopK(ffi::ThreadPool pool, Matrix best, Indices best_indices, Matrix x,
                            Columns columns, ffi::Result<Matrix> values,
                            ffi::Result<Indices> indices) {
  const int64_t rows = x.dimensions()[0], width = x.dimensions()[1], k = best.dimensions()[1];
  if (k < 1) return ffi::Error::InvalidArgument("k must be at least 1");
  int64_t count = width;
  while (count > 0 && columns.typed_data()[count - 1] < 0) --count;
  ParallelFor(pool, rows, [&](int64_t r) {
    static thread_local std::vector<uint64_t> found;
    found.clear();
    for (int64_t i = r * k; i < (r + 1) * k; ++i)
      found.push_back(Candidate(Key(best.typed_data()[i]), best_indices.typed_data()[i]));
    MergeRow(x.typed_data() + r * width, columns.typed_data(), count, k, found);
    for (int64_t i = 0; i < k; ++i) {
      values->typed_data()[r * k + i] = ValueOf(KeyOf(found[i]));
      indices->typed_data()[r * k + i] = static_cast<int32_t>(~static_cast<uint32_t>(found[i]));
    }
  });
  return ffi::Error::Success();
}

}  // namespace hjepa

XLA_FFI_DEFINE_HANDLER_SYMBOL(hjepa_merge_top_k, hjepa::MergeTopK,
                              hjepa::ffi::Ffi::Bind()
                                  .Ctx<hjepa::ffi::ThreadPool>()
                                  .Arg<hjepa::Matrix>()
                                  .Arg<hjepa::Indices>()
                                  .Arg<hjepa::Matrix>()
                                  .Arg<hjepa::Columns>()
                                  .Ret<hjepa::Matrix>()
                                  .Ret<hjepa::Indices>());
