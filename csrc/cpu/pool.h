// The threads of the CPU kernels: one pool for the process, as many as this process may use, and none of OpenMP's.
//
// A call hands out indices one by one, so that a slow core takes fewer. Workers wait for the next call by looking for about as long
// as Python takes between two ops, and then sleep. A call from a second thread at the same time runs on that thread alone: the
// cores are taken. After a fork the child starts workers of its own.
#pragma once

#include <cstdint>

namespace qdengine {

using Task = void (*)(const void* data, int64_t index);

// task(data, i) for every i in [0, count), on the calling thread and at most thread_limit() - 1 workers; returns when all are done.
void run_tasks(int64_t count, Task task, const void* data);

// Threads that this process may keep busy: of its affinity mask, of its control group's quota, rounded
// up, and of OMP_NUM_THREADS.
int usable_threads();

// Most threads of the calls that this thread makes; 0: all that are usable.
void set_thread_limit(int limit);
int thread_limit();

}  // namespace qdengine
