#include "pool.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace qdengine {
namespace {

constexpr int kSpins = 4000;  // looks for a call before a worker sleeps, about 50 to 100 us

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// The present call in one word: its number, whether workers may still join it, and how many have.
struct Call {
  static constexpr uint64_t kOpen = 1u << 31, kJoined = kOpen - 1;
  static uint64_t number(uint64_t word) { return word >> 32; }
};

class Pool {
 public:
  bool run(int64_t count, int workers, Task task, const void* data) {
    const std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
    if (!lock) return false;
    start(workers);
    // Nobody has joined a closed call, so nobody reads these.
    task_ = task;
    data_ = data;
    count_ = count;
    most_ = static_cast<uint64_t>(workers);
    next_.store(0, std::memory_order_relaxed);
    const uint64_t call = Call::number(call_.load(std::memory_order_relaxed)) + 1;
    call_.store(call << 32 | Call::kOpen);
    calls_.fetch_add(1);
    if (asleep_.load() > 0) calls_.notify_all();
    work();
    call_.fetch_and(~Call::kOpen);
    while (call_.load(std::memory_order_acquire) & Call::kJoined) relax();
    return true;
  }

 private:
  void start(int workers) {
    for (; started_ < workers; ++started_) std::thread([this] { serve(); }).detach();
  }

  void work() {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) task_(data_, i);
  }

  // Joins an open call other than `seen`; returns its number, or `seen`.
  uint64_t join(uint64_t seen) {
    uint64_t word = call_.load(std::memory_order_relaxed);
    while (Call::number(word) != seen && (word & Call::kOpen)) {
      if ((word & Call::kJoined) >= most_) return seen;
      if (call_.compare_exchange_weak(word, word + 1, std::memory_order_acquire)) {
        work();
        call_.fetch_sub(1, std::memory_order_release);
        return Call::number(word);
      }
      relax();
    }
    return seen;
  }

  void serve() {
    uint64_t seen = 0;
    for (int spins = 0;;) {
      const uint32_t calls = calls_.load();
      const uint64_t joined = join(seen);
      if (joined != seen) {
        seen = joined;
        spins = 0;
      } else if (++spins < kSpins) {
        relax();
      } else {
        asleep_.fetch_add(1);
        calls_.wait(calls);
        asleep_.fetch_sub(1);
        spins = 0;
      }
    }
  }

  std::mutex busy_;
  int started_ = 0;
  Task task_ = nullptr;
  const void* data_ = nullptr;
  int64_t count_ = 0;
  std::atomic<uint64_t> most_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint64_t> call_{0};
  alignas(64) std::atomic<uint32_t> calls_{0};
  std::atomic<int> asleep_{0};
};

// Never destroyed: workers are detached, and look at it until the process ends.
std::atomic<Pool*> shared{nullptr};

Pool& pool() {
  Pool* found = shared.load(std::memory_order_acquire);
  if (found) return *found;
#ifdef __linux__
  static const int registered = pthread_atfork(nullptr, nullptr, [] { shared.store(nullptr); });
  static_cast<void>(registered);
#endif
  Pool* made = new Pool;
  if (shared.compare_exchange_strong(found, made)) return *made;
  delete made;
  return *found;
}

int affinity_threads() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

// Quota over period of control groups v2 or v1; 0 for no limit.
double quota_threads() {
  std::string quota;
  double period = 0.0;
  if (std::ifstream v2("/sys/fs/cgroup/cpu.max"); v2 >> quota >> period) {
    return quota == "max" ? 0.0 : std::stod(quota) / period;
  }
  std::ifstream v1("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), v1_period("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  double most = 0.0;
  return v1 >> most && v1_period >> period && most > 0.0 ? most / period : 0.0;
}

thread_local int limit_of_thread = 0;

}  // namespace

int usable_threads() {
  static const double quota = quota_threads();
  int threads = affinity_threads();
  if (quota > 0.0) threads = std::min(threads, static_cast<int>(std::ceil(quota)));
  if (const char* text = std::getenv("OMP_NUM_THREADS")) {
    if (const int given = std::atoi(text); given > 0) threads = std::min(threads, given);
  }
  return std::max(1, threads);
}

void set_thread_limit(int limit) { limit_of_thread = std::max(0, limit); }

int thread_limit() {
  const int usable = usable_threads();
  return limit_of_thread > 0 ? std::min(limit_of_thread, usable) : usable;
}

void run_tasks(int64_t count, Task task, const void* data) {
  const int64_t workers = std::min<int64_t>(count, thread_limit()) - 1;
  if (workers > 0 && pool().run(count, static_cast<int>(workers), task, data)) return;
  for (int64_t i = 0; i < count; ++i) task(data, i);
}

}  // namespace qdengine
