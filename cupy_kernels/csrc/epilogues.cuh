// What becomes of a tile of products before it is stored: written once, used by the sm_80 and the sm_90a kernels.
// `row` is a row of the whole tensor; two neighbouring columns at a time, `column` even.
#pragma once
#include "device.cuh"

// h = silu(g) u; g and u are stored too where a backward wants them.
struct SwiGLU {
  bf16 *h, *gate, *up;  // gate, up: null when not wanted
  int columns;
  DEVICE void operator()(size_t row, int column, float g0, float g1, float u0, float u1) const {
    size_t at = row * columns + column;
    store_pair(h + at, silu(g0) * u0, silu(g1) * u1);
    if (gate) {
      store_pair(gate + at, g0, g1);
      store_pair(up + at, u0, u1);
    }
  }
};

// y = product (+ bias) (+ residual)
struct Add {
  bf16* y;
  const bf16 *bias, *residual;  // null where there is none
  int columns;
  DEVICE void operator()(size_t row, int column, float v0, float v1) const {
    size_t at = row * columns + column;
    if (bias) {
      float2 b = load_pair(bias + column);
      v0 += b.x, v1 += b.y;
    }
    if (residual) {
      float2 r = load_pair(residual + at);
      v0 += r.x, v1 += r.y;
    }
    store_pair(y + at, v0, v1);
  }
};

// dh -> dg, du; and h anew, which the gradient of the down projection needs:
// with s = sigmoid(g): h = g s u, du = dh g s, dg = dh u s (1 + g (1 - s))
struct SwiGLUBackward {
  const bf16 *gate, *up;
  bf16 *d_gate, *d_up, *h;
  int columns;
  DEVICE void operator()(size_t row, int column, float dh0, float dh1) const {
    size_t at = row * columns + column;
    float2 g = load_pair(gate + at), u = load_pair(up + at);
    float s0 = sigmoid(g.x), s1 = sigmoid(g.y);
    store_pair(h + at, g.x * s0 * u.x, g.y * s1 * u.y);
    store_pair(d_up + at, dh0 * g.x * s0, dh1 * g.y * s1);
    store_pair(d_gate + at, dh0 * u.x * s0 * (1.f + g.x * (1.f - s0)), dh1 * u.y * s1 * (1.f + g.y * (1.f - s1)));
  }
};
