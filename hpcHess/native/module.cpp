// hpcHess._native: what NumPy does badly. The Python twins in hpcHess/backend say what each kernel means.
#include <nanobind/nanobind.h>

void bind_multiply(nanobind::module_&);
void bind_symmetric(nanobind::module_&);
void bind_bases(nanobind::module_&);
void bind_interpolate(nanobind::module_&);
void bind_eliminate(nanobind::module_&);
void bind_sweep(nanobind::module_&);
void bind_solve(nanobind::module_&);
void bind_entries(nanobind::module_&);
void bind_normal(nanobind::module_&);
void bind_memory(nanobind::module_&);

NB_MODULE(_native, m) {
  bind_multiply(m);
  bind_symmetric(m);
  bind_bases(m);
  bind_interpolate(m);
  bind_eliminate(m);
  bind_sweep(m);
  bind_solve(m);
  bind_entries(m);
  bind_normal(m);
  bind_memory(m);
}
