// What becomes of a tile of products before it is stored: written once, used by the sm_80 and the sm_90a kernels.
// `row` is a row of the whole tensor; N neighbouring columns from `column` at a time, 2 or 8. What an epilogue reads is
// asked for by itself, so that a kernel can ask for much at once before it needs any.
#pragma once
#include "device.cuh"

// h = silu(g) u; g and u are stored too where a backward wants them.
struct SwiGLU {
  bf16 *h, *gate, *up;  // gate, up: null when not wanted
  int columns;
  template <int N> DEVICE void write(size_t row, int column, const float (&g)[N], const float (&u)[N]) const {
    size_t at = row * columns + column;
    float product[N];
#pragma unroll
    for (int i = 0; i < N; i++) product[i] = silu(g[i]) * u[i];
    store(h + at, product);
    if (gate) {
      store(gate + at, g);
      store(up + at, u);
    }
  }
};

// y = product (+ bias) (+ residual)
struct Add {
  bf16* y;
  const bf16 *bias, *residual;  // null where there is none
  int columns;
  template <int N> struct Read { Packed<N> bias, residual; };
  template <int N> DEVICE Read<N> read(size_t row, int column) const {
    return {bias ? load<N>(bias + column) : Packed<N>{}, residual ? load<N>(residual + row * columns + column) : Packed<N>{}};
  }
  template <int N> DEVICE void write(size_t row, int column, const Read<N>& read, const float (&v)[N]) const {
    float sum[N];
#pragma unroll
    for (int i = 0; i < N; i++) sum[i] = v[i] + read.bias[i] + read.residual[i];
    store(y + row * columns + column, sum);
  }
};

// dh -> dg, du; and h anew, which the gradient of the down projection needs:
// with s = sigmoid(g): h = g s u, du = dh g s, dg = dh u s (1 + g (1 - s))
struct SwiGLUBackward {
  const bf16 *gate, *up;
  bf16 *d_gate, *d_up, *h;
  int columns;
  template <int N> struct Read { Packed<N> gate, up; };
  template <int N> DEVICE Read<N> read(size_t row, int column) const {
    size_t at = row * columns + column;
    return {load<N>(gate + at), load<N>(up + at)};
  }
  template <int N> DEVICE void write(size_t row, int column, const Read<N>& read, const float (&dh)[N]) const {
    size_t at = row * columns + column;
    float dg[N], du[N], product[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
      float g = read.gate[i], u = read.up[i], s = sigmoid(g);
      product[i] = g * s * u;
      du[i] = dh[i] * g * s;
      dg[i] = dh[i] * u * s * (1.f + g * (1.f - s));
    }
    store(h + at, product);
    store(d_up + at, du);
    store(d_gate + at, dg);
  }
};
