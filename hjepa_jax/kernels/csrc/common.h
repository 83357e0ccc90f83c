// Vectors, parallel loops and scratch memory of the native kernels.
#ifndef HJEPA_KERNELS_COMMON_H_
#define HJEPA_KERNELS_COMMON_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace hjepa {

namespace ffi = xla::ffi;

// The register file sets the tile shape: kPixels x kVectors accumulators must fit in it.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kPixels = 14, kRows = 8;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int kLanes = 8, kPixels = 6, kRows = 4;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kPixels = 12, kRows = 8;
#else
constexpr int kLanes = 4, kPixels = 6, kRows = 4;
#endif
constexpr int kVectors = 2;
constexpr int kPanel = kLanes * kVectors;  // features computed together
constexpr int kBlock = 16;                 // channels kept together

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));

inline Vec Load(const float* from) {
  Vec v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

inline void Store(float* to, Vec v) { std::memcpy(to, &v, sizeof(v)); }

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls f(i) for every i in [0, n), in any order, on the calling thread and those of `pool`.
//
// No thread waits for work that has not started: the caller processes whatever is left, so a pool
// whose threads are all busy (or all waiting here) cannot deadlock.
template <typename F>
void ParallelFor(ffi::ThreadPool& pool, int64_t n, const F& f) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
    int64_t n;
    const F* f;
    void Run() {
      for (int64_t i; (i = next.fetch_add(1)) < n; done.fetch_add(1)) (*f)(i);
    }
  };
  auto shared = std::make_shared<Shared>();
  shared->n = n;
  shared->f = &f;
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), n) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([shared] { shared->Run(); });
  shared->Run();
  while (shared->done.load() < n) std::this_thread::yield();
}

// Requests huge pages for a result. XLA maps the memory of temporaries afresh in every step, and
// each page faults when first written: a sixth of the CPU time of a step with 4 KiB pages. This is
// only a hint, so other data on the first and the last huge page does not matter.
inline void AskForHugePages(float* data, int64_t floats) {
#ifdef __linux__
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t end = begin + floats * sizeof(float);
  if (end - begin < kHugePage / 2) return;
  const uintptr_t first = begin / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(first), CeilDiv(end - first, kHugePage) * kHugePage,
          MADV_HUGEPAGE);
#endif
}

// Scratch memory, aligned to cache lines, that a thread keeps between calls. One per use.
class Arena {
 public:
  float* Get(int64_t floats) {
    if (floats > size_) {
      std::free(data_);
      const size_t bytes = CeilDiv(floats * sizeof(float), 64) * 64;
      data_ = static_cast<float*>(std::aligned_alloc(64, bytes));
      if (data_ == nullptr) throw std::bad_alloc();
      size_ = floats;
    }
    return data_;
  }
  ~Arena() { std::free(data_); }

 private:
  float* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace hjepa

#endif  // HJEPA_KERNELS_COMMON_H_
