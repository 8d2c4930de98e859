#include "pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace qdengine {
namespace {

constexpr std::chrono::microseconds kLook{100};  // how long a worker looks for a call before it sleeps
constexpr int kLooks = 64;                       // between two looks at the clock

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

thread_local bool in_a_call = false;

// The present call in one word: its number, whether workers may still join it, and how many have.
struct Call {
  static constexpr uint64_t kOpen = 1u << 31, kJoined = kOpen - 1;
  static uint64_t number(uint64_t word) { return word >> 32; }
};

struct alignas(64) Worker {
  std::atomic<uint32_t> wakes{0};
  std::atomic<bool> asleep{false};
};

class Pool {
 public:
  // False, and nothing done, where another thread's call has the workers.
  bool run(int64_t count, int wanted, Task task, const void* data) {
    const std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
    if (!lock) return false;
    const int workers = start(wanted);
    // Nobody has joined a closed call, so nobody reads these.
    task_ = task;
    data_ = data;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    most_.store(workers);
    call_.store((Call::number(call_.load()) + 1) << 32 | Call::kOpen);
    for (int i = 0; i < workers; ++i) wake(*workers_[static_cast<size_t>(i)]);
    work();
    call_.fetch_and(~Call::kOpen);
    while (call_.load(std::memory_order_acquire) & Call::kJoined) relax();
    return true;
  }

 private:
  // How many there are of those that are wanted.
  int start(int wanted) {
    try {
      while (!refused_ && static_cast<int>(workers_.size()) < wanted) {
        workers_.push_back(std::make_unique<Worker>());
        std::thread([this, worker = workers_.back().get(), index = static_cast<int>(workers_.size()) - 1] {
          serve(*worker, index);
        }).detach();
      }
    } catch (const std::system_error&) {
      workers_.pop_back();
      refused_ = true;
    }
    return std::min(wanted, static_cast<int>(workers_.size()));
  }

  static void wake(Worker& worker) {
    if (!worker.asleep.load()) return;
    worker.wakes.fetch_add(1);
    worker.wakes.notify_one();
  }

  void work() noexcept {
    in_a_call = true;
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) task_(data_, i);
    in_a_call = false;
  }

  // Whether there is a call other than `seen` for this worker; joins it, and then `seen` is its number.
  bool join(int index, uint64_t& seen) {
    uint64_t word = call_.load();
    while (index < most_.load() && Call::number(word) != seen && (word & Call::kOpen)) {
      if (call_.compare_exchange_weak(word, word + 1)) {
        seen = Call::number(word);
        work();
        call_.fetch_sub(1, std::memory_order_release);
        return true;
      }
    }
    return false;
  }

  // Looks for a call for a while; false when there was none.
  bool look(int index, uint64_t& seen) {
    const auto until = std::chrono::steady_clock::now() + kLook;
    do {
      for (int i = 0; i < kLooks; ++i) {
        if (join(index, seen)) return true;
        relax();
      }
    } while (index < most_.load() && std::chrono::steady_clock::now() < until);
    return false;
  }

  void serve(Worker& self, int index) {
    for (uint64_t seen = 0;;) {
      if (look(index, seen)) continue;
      const uint32_t wakes = self.wakes.load();
      self.asleep.store(true);
      if (!join(index, seen)) self.wakes.wait(wakes);  // a call from here on sees that it sleeps
      self.asleep.store(false);
    }
  }

  std::mutex busy_;
  bool refused_ = false;
  std::vector<std::unique_ptr<Worker>> workers_;
  Task task_ = nullptr;
  const void* data_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int> most_{0};  // workers of the present call
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint64_t> call_{0};
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

// Lines of a text file; none where there is no such file. Read by C's functions: streams fail where a program holds two C++ libraries.
std::vector<std::string> lines(const std::string& path) {
  std::vector<std::string> found;
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "r"), [](std::FILE* f) { return std::fclose(f); });
  char line[4096];
  while (file && std::fgets(line, sizeof line, file.get())) found.emplace_back(line, std::strcspn(line, "\n"));
  return found;
}

// Quota over period of one control group of version 2 or 1; infinity for no limit.
double group_threads(const std::string& folder) {
  double quota = 0.0, period = 0.0;
  if (const auto both = lines(folder + "/cpu.max"); !both.empty()) {
    return std::sscanf(both[0].c_str(), "%lf %lf", &quota, &period) == 2 && period > 0.0 ? quota / period : HUGE_VAL;
  }
  const auto first = lines(folder + "/cpu.cfs_quota_us"), second = lines(folder + "/cpu.cfs_period_us");
  if (first.empty() || second.empty()) return HUGE_VAL;
  quota = std::atof(first[0].c_str()), period = std::atof(second[0].c_str());
  return quota > 0.0 && period > 0.0 ? quota / period : HUGE_VAL;
}

// The least of the process's control group and those that it lies in.
double quota_threads() {
  double least = HUGE_VAL;
  for (const std::string& line : lines("/proc/self/cgroup")) {  // number:controllers:path
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    std::string controllers = line.substr(first, second - first);  // ":" of version 2; of version 1 ":cpu,cpuacct", say
    const bool unified = controllers == ":";
    std::replace(controllers.begin(), controllers.end(), ':', ',');
    if (!unified && controllers.append(1, ',').find(",cpu,") == std::string::npos) continue;
    const std::string root = unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
    for (std::string path = line.substr(second + 1);; path.resize(path.rfind('/'))) {
      least = std::min(least, group_threads(root + path));
      if (path.find('/') == std::string::npos) break;
    }
  }
  return least;
}

int environment_threads() {
  const char* text = std::getenv("OMP_NUM_THREADS");
  const int given = text ? std::atoi(text) : 0;
  return given > 0 ? given : 1 << 20;
}

thread_local int limit_of_thread = 0;

}  // namespace

int usable_threads() {
  static const double quota = quota_threads();
  static const int given = environment_threads();
  int threads = std::min(affinity_threads(), given);
  if (quota < threads) threads = static_cast<int>(std::ceil(quota));
  return std::max(1, threads);
}

void set_thread_limit(int limit) { limit_of_thread = std::max(0, limit); }

int call_threads() {
  if (in_a_call) return 1;
  static const int usable = usable_threads();
  return limit_of_thread > 0 ? limit_of_thread : usable;
}

void run_tasks(int64_t count, Task task, const void* data) {
  if (count > 1 && !in_a_call) {
    const int workers = static_cast<int>(std::min<int64_t>(count, call_threads())) - 1;
    if (workers > 0 && pool().run(count, workers, task, data)) return;
  }
  for (int64_t i = 0; i < count; ++i) task(data, i);
}

}  // namespace qdengine
