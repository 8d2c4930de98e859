// Rows of a table on a CPU, by the engine's own threads: torch's would wake its OpenMP team, which then keeps cores busy for
// milliseconds while it waits for more.
#include <algorithm>
#include <cstring>

#include "../cpu/pool.h"
#include "qdengine/check.h"
#include "qdengine/ops.h"

namespace qdengine::ops {

void take_rows(const Tensor& out, const Tensor& table, const Tensor& ids) {
  const Check check("take_rows");
  check.shape("table", table, {-1, -1});
  check.floating("table", table);
  if (table.device != Device::cpu) check.fail("table", "a tensor on the CPU", "one on another device");
  check.indices("ids", ids, table, {-1});
  const int64_t rows = ids.dim(0);
  check.shape("out", out, {rows, table.dim(1)});
  check.like("out", out, table);
  const int32_t* id = ids.as<const int32_t>();
  for (int64_t r = 0; r < rows; ++r) {
    if (id[r] < 0 || id[r] >= table.dim(0)) {
      check.fail("ids", "rows of the table, below " + std::to_string(table.dim(0)), std::to_string(id[r]));
    }
  }
  const int64_t size = size_of(table.dtype), bytes = table.dim(1) * size;
  constexpr int64_t kTaskRows = 32;
  const auto copy = [&](int64_t task) {
    const int64_t end = std::min((task + 1) * kTaskRows, rows);
    for (int64_t r = task * kTaskRows; r < end; ++r) {
      std::memcpy(out.as<char>() + r * out.stride[0] * size, table.as<const char>() + id[r] * table.stride[0] * size,
                  static_cast<size_t>(bytes));
    }
  };
  run_tasks((rows + kTaskRows - 1) / kTaskRows,
            [](const void* data, int64_t task) { (*static_cast<const decltype(copy)*>(data))(task); }, &copy);
}

}  // namespace qdengine::ops
