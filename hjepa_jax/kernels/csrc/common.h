// Vectors, work sharing and scratch memory of the native kernels.
#ifndef HJEPA_NATIVE_COMMON_H_
#define HJEPA_NATIVE_COMMON_H_

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

// Registers decide the shape of a tile: kPixels x kVectors accumulators must stay in them.
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

// Calls f(i) for every i in [0, n), in any order, on the threads of `pool` and this one.
//
// No thread waits for work that has not begun: this one takes whatever is left itself, so that a
// pool whose threads are all busy (or all waiting here) cannot deadlock.
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

// Asks for huge pages below a result. XLA maps the memory of temporaries anew for every step, and
// each page costs a fault when it is first written: a sixth of a step's processor time with 4 KiB.
// Only a hint, so that neighbours on the first and the last huge page do not matter.
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

// Memory that a thread keeps between calls, aligned to cache lines. One for each purpose.
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

#endif  // HJEPA_NATIVE_COMMON_H_
