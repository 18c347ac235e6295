// A decoding step: 1 to 8 tokens, so the weights are read once and the floor is the memory's bandwidth. Tokens 0 to
// first - 1 belong to expert 0, the others to expert 1; an expert without tokens is not read.
//
// K depth of the product, N columns of the result, kTokens the most tokens that a variant holds.
#include "device.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32, WIDE = 8;  // WIDE: bf16 in 16 bytes
constexpr int AHEAD = 4;                                      // loads of 16 bytes in flight for each matrix and lane

// sums[t] += w . x[t] over 8 elements
template <int kTokens>
DEVICE void dot8(float (&sums)[kTokens], uint4 w, const bf16* x, int stride, int count) {
  const uint32_t word[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
  for (int t = 0; t < kTokens; t++)
    if (t < count) {
      uint4 v = *(const uint4*)(x + (size_t)t * stride);
      const uint32_t other[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 4; i++) {
        sums[t] += low_half(word[i]) * low_half(other[i]);
        sums[t] += high_half(word[i]) * high_half(other[i]);
      }
    }
}

// Several matrices' rows times the same x: lanes take every 32nd piece of 16 bytes, AHEAD pieces at once.
template <int kTokens, int kRows>
DEVICE void row_products(float (&sums)[kRows][kTokens], const bf16* const (&rows)[kRows], const bf16* x, int stride,
                         int count, int begin, int end) {
  int lane = threadIdx.x & 31;
  for (int k = begin + lane * WIDE; k < end; k += 32 * WIDE * AHEAD) {
    uint4 w[AHEAD][kRows];
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
#pragma unroll
      for (int r = 0; r < kRows; r++)
        if (k + i * 32 * WIDE < end) w[i][r] = load_once(rows[r] + k + i * 32 * WIDE);
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
#pragma unroll
      for (int r = 0; r < kRows; r++)
        if (k + i * 32 * WIDE < end) dot8<kTokens>(sums[r], w[i][r], x + k + i * 32 * WIDE, stride, count);
  }
}

// x [tokens, K] (+ delta) is the residual stream; `sum` takes x + delta. h [tokens, N] = SwiGLU of RMSNorm(x + delta),
// rounded where torch rounds: the sum, the normalised value, its product with the weight.
template <int kTokens>
DEVICE void decode_gate_up(const bf16* x, const bf16* delta, bf16* sum, const bf16* norm0, const bf16* norm1,
                           const bf16* gate0, const bf16* up0, const bf16* gate1, const bf16* up1, bf16* h, int first,
                           int tokens, int K, int N, float eps) {
  DYNAMIC_SHARED(shared);
  bf16* normed = (bf16*)shared;                                        // [tokens, K]
  float* partial = (float*)(shared + (size_t)tokens * K * sizeof(bf16));  // [tokens, WARPS]
  int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;

  for (int t = 0; t < tokens; t++) {
    float squares = 0.f;
    for (int k = thread; k < K; k += THREADS) {
      float v = __bfloat162float(x[(size_t)t * K + k]);
      if (delta) v = __bfloat162float(__float2bfloat16(v + __bfloat162float(delta[(size_t)t * K + k])));
      bf16 rounded = __float2bfloat16(v);
      normed[(size_t)t * K + k] = rounded;
      if (delta && blockIdx.x == 0) sum[(size_t)t * K + k] = rounded;
      squares += v * v;
    }
    squares = warp_sum(squares);
    if (lane == 0) partial[t * WARPS + warp] = squares;
  }
  __syncthreads();
  for (int t = 0; t < tokens; t++) {
    float squares = 0.f;
    for (int i = 0; i < WARPS; i++) squares += partial[t * WARPS + i];
    float scale = rsqrtf(squares / K + eps);
    const bf16* weight = t < first ? norm0 : norm1;
    for (int k = thread; k < K; k += THREADS) {
      float v = __bfloat162float(__float2bfloat16(__bfloat162float(normed[(size_t)t * K + k]) * scale));
      normed[(size_t)t * K + k] = __float2bfloat16(v * __bfloat162float(weight[k]));
    }
  }
  __syncthreads();

  for (int n = blockIdx.x * WARPS + warp; n < N; n += gridDim.x * WARPS)
    for (int expert = 0; expert < 2; expert++) {
      int begin = expert ? first : 0, count = expert ? tokens - first : first;
      if (count == 0) continue;
      const bf16* const rows[2] = {(expert ? gate1 : gate0) + (size_t)n * K, (expert ? up1 : up0) + (size_t)n * K};
      float sums[2][kTokens] = {};
      row_products<kTokens, 2>(sums, rows, normed + (size_t)begin * K, K, count, 0, K);
#pragma unroll
      for (int t = 0; t < kTokens; t++)
        if (t < count) {
          float g = warp_sum(sums[0][t]), u = warp_sum(sums[1][t]);
          if (lane == 0) h[(size_t)(begin + t) * N + n] = __float2bfloat16(silu(g) * u);
        }
    }
}

// y [tokens, N] = residual + h w^T: one block of four warps a column, each a quarter of the depth.
constexpr int DOWN_THREADS = 128, DOWN_WARPS = DOWN_THREADS / 32;
template <int kTokens>
DEVICE void decode_down(const bf16* h, const bf16* w0, const bf16* w1, const bf16* residual, bf16* y, int first,
                        int tokens, int K, int N) {
  DYNAMIC_SHARED(shared);
  float* partial = (float*)shared;  // [DOWN_WARPS, tokens]
  int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5, n = blockIdx.x;
  int pieces = (K / WIDE + DOWN_WARPS - 1) / DOWN_WARPS * WIDE;
  int from = warp * pieces, to = from + pieces < K ? from + pieces : K;
  for (int expert = 0; expert < 2; expert++) {
    int begin = expert ? first : 0, count = expert ? tokens - first : first;
    if (count == 0) continue;
    const bf16* const rows[1] = {(expert ? w1 : w0) + (size_t)n * K};
    float sums[1][kTokens] = {};
    row_products<kTokens, 1>(sums, rows, h + (size_t)begin * K, K, count, from, to);
#pragma unroll
    for (int t = 0; t < kTokens; t++)
      if (t < count) {
        float s = warp_sum(sums[0][t]);
        if (lane == 0) partial[warp * tokens + begin + t] = s;
      }
  }
  __syncthreads();
  if (thread < tokens) {
    float s = 0.f;
    for (int i = 0; i < DOWN_WARPS; i++) s += partial[i * tokens + thread];
    size_t at = (size_t)thread * N + n;
    // rounded once before the residual, as torch does
    y[at] = __float2bfloat16(__bfloat162float(residual[at]) + __bfloat162float(__float2bfloat16(s)));
  }
}

#define VARIANTS(kTokens)                                                                                            \
  KERNEL(THREADS, 2, decode_gate_up_##kTokens)                                                                       \
  (const bf16* x, const bf16* delta, bf16* sum, const bf16* norm0, const bf16* norm1, const bf16* gate0,             \
   const bf16* up0, const bf16* gate1, const bf16* up1, bf16* h, int first, int tokens, int K, int N, float eps) {   \
    decode_gate_up<kTokens>(x, delta, sum, norm0, norm1, gate0, up0, gate1, up1, h, first, tokens, K, N, eps);       \
  }                                                                                                                  \
  REGISTER_KERNEL(decode_gate_up_##kTokens)                                                                          \
  KERNEL(DOWN_THREADS, 4, decode_down_##kTokens)                                                                     \
  (const bf16* h, const bf16* w0, const bf16* w1, const bf16* residual, bf16* y, int first, int tokens, int K,       \
   int N) {                                                                                                          \
    decode_down<kTokens>(h, w0, w1, residual, y, first, tokens, K, N);                                               \
  }                                                                                                                  \
  REGISTER_KERNEL(decode_down_##kTokens)

VARIANTS(1)
VARIANTS(2)
VARIANTS(4)
VARIANTS(8)
