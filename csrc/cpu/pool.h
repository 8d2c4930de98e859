// The threads of the CPU kernels: one pool for the process, as many as this process may use, and none of OpenMP's.
//
// A call hands out indices one by one, so that a slow core takes fewer. Workers look for the next call for about as long as Python
// takes between two ops, and then sleep. A call from a second thread at the same time, or from a task, runs on its own thread alone:
// the cores are taken. After a fork the child starts workers of its own. Where the system gives no more threads, those there are do
// the work.
#pragma once

#include <cstdint>

namespace qdengine {

// Must not throw.
using Task = void (*)(const void* data, int64_t index);

// task(data, i) for every i in [0, count), on the calling thread and on workers; returns when all are done.
void run_tasks(int64_t count, Task task, const void* data);

// Threads that this process may keep busy now: of its affinity mask, of its control groups' quotas, rounded up, and of
// OMP_NUM_THREADS.
int usable_threads();

// Those of a call that this thread makes: one where it makes it from a task.
int call_threads();

// Most threads of the calls that this thread makes; 0: those that were usable at the process's first call.
void set_thread_limit(int limit);

}  // namespace qdengine
