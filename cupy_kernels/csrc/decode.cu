// A decoding step: few tokens, so every weight is read once and the floor is the memory's bandwidth.
//
//   *_one    one token, on the CUDA cores: a warp for each row of weights
//   *_few    2 to 8 tokens, on the tensor cores: they are the 8 columns of mma.m16n8k16, 16 rows of weights its rows.
//            Tokens 0 to first - 1 belong to expert 0, the others to expert 1; an expert without tokens is not read.
//
// K depth of the product, N columns of the result; both are multiples of 8.
#include "device.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32, WIDE = 8;  // WIDE: bf16 in 16 bytes

// ---- RMSNorm of the residual stream ---------------------------------------------------------------------------------

// normed[t * pitch + k] = RMSNorm(x + delta), rounded where torch rounds: the sum, the normalised value, its product
// with the weight. `sum` takes x + delta. So many warps share a token, and all tokens are on their way at once;
// `partial` [WARPS].
template <int kWarps>
DEVICE void normalise(bf16* normed, float* partial, const bf16* x, const bf16* delta, bf16* sum, const bf16* norm0,
                      const bf16* norm1, int first, int tokens, int K, int pitch, float eps) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, t = warp / kWarps;
  int begin = (warp % kWarps * 32 + lane) * WIDE;
  constexpr int STRIDE = kWarps * 32 * WIDE;
  bf16* mine = normed + (size_t)t * pitch;
  if (t < tokens) {
    float squares = 0.f;
    for (int k = begin; k < K; k += STRIDE) {
      size_t at = (size_t)t * K + k;
      Packed<WIDE> one = load<WIDE>(x + at), more = {};
      if (delta) more = load<WIDE>(delta + at);
      float v[WIDE];
#pragma unroll
      for (int i = 0; i < WIDE; i++) {
        v[i] = rounded(one[i] + more[i]);
        squares += v[i] * v[i];
      }
      store(mine + k, v);
      if (delta && blockIdx.x == 0) store(sum + at, v);
    }
    squares = warp_sum(squares);
    if (lane == 0) partial[warp] = squares;
  }
  __syncthreads();
  if (t < tokens) {
    float squares = 0.f;
    for (int i = 0; i < kWarps; i++) squares += partial[t * kWarps + i];
    float scale = rsqrtf(squares / K + eps);
    const bf16* weight = t < first ? norm0 : norm1;
    for (int k = begin; k < K; k += STRIDE) {  // what this thread has stored itself
      Packed<WIDE> v = load<WIDE>(mine + k), w = load<WIDE>(weight + k);
      float product[WIDE];
#pragma unroll
      for (int i = 0; i < WIDE; i++) product[i] = rounded(v[i] * scale) * w[i];
      store(mine + k, product);
    }
  }
  __syncthreads();
}

// ---- one token --------------------------------------------------------------------------------------------------------

constexpr int AHEAD = 4;  // loads of 16 bytes in flight for each row and lane

DEVICE float dot8(uint4 w, const bf16* x) {
  uint4 v = *(const uint4*)x;
  const uint32_t one[4] = {w.x, w.y, w.z, w.w}, other[4] = {v.x, v.y, v.z, v.w};
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < 4; i++) sum += low_half(one[i]) * low_half(other[i]) + high_half(one[i]) * high_half(other[i]);
  return sum;
}

// Rows of weights times x over [begin, end): lanes take every 32nd piece of 16 bytes, AHEAD pieces at once.
template <int kRows>
DEVICE void row_products(float (&sums)[kRows], const bf16* const (&rows)[kRows], const bf16* x, int begin, int end) {
  for (int k = begin + (threadIdx.x & 31) * WIDE; k < end; k += 32 * WIDE * AHEAD) {
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
        if (k + i * 32 * WIDE < end) sums[r] += dot8(w[i][r], x + k + i * 32 * WIDE);
  }
}

// h [N] = SwiGLU of RMSNorm(x + delta) [K], and the sum x + delta.
KERNEL(THREADS, 2, decode_gate_up_one)
(const bf16* x, const bf16* delta, bf16* sum, const bf16* norm, const bf16* gate, const bf16* up, bf16* h, int K, int N,
 float eps) {
  DYNAMIC_SHARED(shared);
  bf16* normed = (bf16*)shared;
  normalise<WARPS>(normed, (float*)(normed + K), x, delta, sum, norm, norm, 1, 1, K, K, eps);
  int lane = threadIdx.x & 31;
  for (int n = blockIdx.x * WARPS + (threadIdx.x >> 5); n < N; n += gridDim.x * WARPS) {
    const bf16* const rows[2] = {gate + (size_t)n * K, up + (size_t)n * K};
    float sums[2] = {};
    row_products(sums, rows, normed, 0, K);
    float g = warp_sum(sums[0]), u = warp_sum(sums[1]);
    if (lane == 0) h[n] = __float2bfloat16(silu(g) * u);
  }
}
REGISTER_KERNEL(decode_gate_up_one)

// y [N] = residual + w h: a block of four warps for each row of w, each a quarter of the depth.
constexpr int DOWN_THREADS = 128, DOWN_WARPS = DOWN_THREADS / 32;
KERNEL(DOWN_THREADS, 4, decode_down_one)
(const bf16* h, const bf16* w, const bf16* residual, bf16* y, int K, int N) {
  DYNAMIC_SHARED(shared);
  float* partial = (float*)shared;  // [DOWN_WARPS]
  int warp = threadIdx.x >> 5, n = blockIdx.x;
  int pieces = (K / WIDE + DOWN_WARPS - 1) / DOWN_WARPS * WIDE, from = warp * pieces;
  const bf16* const rows[1] = {w + (size_t)n * K};
  float sums[1] = {};
  row_products(sums, rows, h, from, from + pieces < K ? from + pieces : K);
  float s = warp_sum(sums[0]);
  if ((threadIdx.x & 31) == 0) partial[warp] = s;
  __syncthreads();
  if (threadIdx.x == 0) {
    s = 0.f;
    for (int i = 0; i < DOWN_WARPS; i++) s += partial[i];
    y[n] = __float2bfloat16(__bfloat162float(residual[n]) + rounded(s));  // rounded once before, as torch does
  }
}
REGISTER_KERNEL(decode_down_one)

// ---- few tokens -------------------------------------------------------------------------------------------------------

constexpr int TOKENS = 8, STEP = 4 * WIDE;  // the depth that two mma take, 8 elements of each lane
constexpr int BATCH = 4;                    // steps whose loads are issued together

// 16 rows of weights times up to 8 tokens. Lane l reads rows l / 4 and 8 + l / 4 and token l / 4, of each step the
// 8 elements l % 4. That is not the order in which mma counts the depth, but it is the same for both operands, so every
// load is one of 16 bytes and none needs shared memory.
struct Products {
  uint4 w[2][BATCH][2];  // one half is multiplied while the other is on its way
  float d[4];            // rows l / 4 (0, 1) and 8 + l / 4 (2, 3), tokens 2 (l % 4) and 2 (l % 4) + 1

  template <int kHalf> DEVICE void load(const bf16* low, const bf16* high, int k, int end) {
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
      int at = k + i * STEP + (threadIdx.x & 3) * WIDE;
      w[kHalf][i][0] = at < end ? load_once(low + at) : uint4{0, 0, 0, 0};
      w[kHalf][i][1] = at < end ? load_once(high + at) : uint4{0, 0, 0, 0};
    }
  }
  template <int kHalf> DEVICE void multiply(const bf16* x, int k, int end) {
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
      if (k + i * STEP >= end) break;
      int at = k + i * STEP + (threadIdx.x & 3) * WIDE;
      uint4 b = at < end ? *(const uint4*)(x + at) : uint4{0, 0, 0, 0}, low = w[kHalf][i][0], high = w[kHalf][i][1];
      mma_m16n8k16(d, {low.x, high.x, low.y, high.y}, b.x, b.y);
      mma_m16n8k16(d, {low.z, high.z, low.w, high.w}, b.z, b.w);
    }
  }
  // The first loads, which may start before the tokens are known. `low`, `high`: the lane's rows.
  DEVICE void start(const bf16* low, const bf16* high, int begin, int end) { load<0>(low, high, begin, end); }
  // After `start`: all of [begin, end) times the lane's token x.
  DEVICE void run(const bf16* low, const bf16* high, const bf16* x, int begin, int end) {
    constexpr int DEEP = BATCH * STEP;
    d[0] = d[1] = d[2] = d[3] = 0.f;
    for (int k = begin; k < end; k += 2 * DEEP) {
      load<1>(low, high, k + DEEP, end);
      multiply<0>(x, k, end);
      load<0>(low, high, k + 2 * DEEP, end);
      multiply<1>(x, k + DEEP, end);
    }
  }
};

// h [tokens, N] = SwiGLU of RMSNorm(x + delta) [tokens, K], and the sums x + delta. A warp takes 8 columns: their rows of
// gate are the first 8 of the product and those of up the last, so the SwiGLU happens in the registers of one lane.
KERNEL(THREADS, 1, decode_gate_up_few)
(const bf16* x, const bf16* delta, bf16* sum, const bf16* norm0, const bf16* norm1, const bf16* gate0, const bf16* up0,
 const bf16* gate1, const bf16* up1, bf16* h, int first, int tokens, int K, int N, int pitch, float eps) {
  DYNAMIC_SHARED(shared);
  bf16* normed = (bf16*)shared;  // [tokens, pitch]
  int lane = threadIdx.x & 31, row = lane >> 2, n0 = (blockIdx.x * WARPS + (threadIdx.x >> 5)) * 8;
  const bf16* mine = normed + (size_t)(row < tokens ? row : 0) * pitch;
  Products products;
  auto start = [&](int expert) {
    size_t from = (size_t)(n0 + row) * K;
    products.start((expert ? gate1 : gate0) + from, (expert ? up1 : up0) + from, 0, K);
  };
  bool started = n0 < N;
  if (started) start(first == 0);  // with the first expert that has tokens
  normalise<1>(normed, (float*)(normed + (size_t)tokens * pitch), x, delta, sum, norm0, norm1, first, tokens, K, pitch,
               eps);

  for (; n0 < N; n0 += gridDim.x * WARPS * 8)
    for (int expert = 0; expert < 2; expert++) {
      int begin = expert ? first : 0, end = expert ? tokens : first;
      if (begin == end) continue;
      if (!started) start(expert);
      started = false;
      size_t from = (size_t)(n0 + row) * K;
      products.run((expert ? gate1 : gate0) + from, (expert ? up1 : up0) + from, mine, 0, K);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        int t = (lane & 3) * 2 + i;
        if (begin <= t && t < end)
          h[(size_t)t * N + n0 + row] = __float2bfloat16(silu(products.d[i]) * products.d[2 + i]);
      }
    }
}
REGISTER_KERNEL(decode_gate_up_few)

// y [tokens, N] = residual + h w^T: a block for 16 columns, each warp an eighth of the depth.
KERNEL(THREADS, 1, decode_down_few)
(const bf16* h, const bf16* w0, const bf16* w1, const bf16* residual, bf16* y, int first, int tokens, int K, int N) {
  DYNAMIC_SHARED(shared);
  float* partial = (float*)shared;  // [WARPS, 16, TOKENS]
  int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5, row = lane >> 2, n0 = blockIdx.x * 16;
  int piece = (K + STEP * WARPS - 1) / (STEP * WARPS) * STEP;
  int from = warp * piece, to = from + piece < K ? from + piece : K;
  const bf16* mine = h + (size_t)(row < tokens ? row : 0) * K;
  int low = n0 + row < N ? n0 + row : N - 1, high = n0 + row + 8 < N ? n0 + row + 8 : N - 1;
  for (int expert = 0; expert < 2; expert++) {
    int begin = expert ? first : 0, end = expert ? tokens : first;
    if (begin == end) continue;
    const bf16* w = expert ? w1 : w0;
    Products products;
    products.start(w + (size_t)low * K, w + (size_t)high * K, from, to);
    products.run(w + (size_t)low * K, w + (size_t)high * K, mine, from, to);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int t = (lane & 3) * 2 + (i & 1);
      if (begin <= t && t < end) partial[(warp * 16 + row + (i >> 1) * 8) * TOKENS + t] = products.d[i];
    }
  }
  __syncthreads();
  int t = thread / 16, n = n0 + thread % 16;
  if (t < tokens && n < N) {
    float s = 0.f;
    for (int i = 0; i < WARPS; i++) s += partial[(i * 16 + thread % 16) * TOKENS + t];
    size_t at = (size_t)t * N + n;
    y[at] = __float2bfloat16(__bfloat162float(residual[at]) + rounded(s));  // rounded once before, as torch does
  }
}
REGISTER_KERNEL(decode_down_few)
