/*
 * The draws of one unit by all flags of a plan: `kernel.c` includes this once for each kind of processor, which ROW and
 * ROW_TARGET name. It is text instead of an inlined function because compilers split vectors before they inline.
 */

/* Sixteen of the 64 steps of MD5, for sixteen messages at a time. `index` says which word a step takes. */
#define ROUND(number, mixed, index)                                                                                   \
    _Pragma("GCC unroll 16")                                                                                          \
    for (uint32_t step = 0; step < 16; step++) {                                                                      \
        const lanes sum = a + (mixed) + block[(index) % BLOCK_WORDS] + SINES[16 * (number) + step];                    \
        const uint32_t by = ROTATIONS[number][step % 4];                                                              \
        a = d, d = c, c = b;                                                                                          \
        b += (sum << by) | (sum >> (32 - by));                                                                        \
    }

ROW_TARGET static void ROW(const Plan *plan, const uint8_t *unit, size_t unit_bytes, uint8_t *drawn) {
    const lanes zero = {0};
    const uint32_t whole = (uint32_t)unit_bytes / 4, shift = (uint32_t)unit_bytes % 4 * 8;
    uint32_t words[MAX_UNIT_WORDS] = {0};
    if (unit_bytes)
        memcpy(words, unit, unit_bytes);

    const Group *group = (const Group *)(plan + 1);
    for (uint32_t first = 0; first < plan->flags; first += LANES) {
        const lanes bytes = group->salt_bytes + (uint32_t)unit_bytes;
        const lanes blocks = (bytes + (END_BYTES + BLOCK_BYTES - 1)) / BLOCK_BYTES;
        const uint32_t most = ((uint32_t)unit_bytes + group->longest + END_BYTES + BLOCK_BYTES - 1) / BLOCK_BYTES;
        lanes A = zero + 0x67452301u, B = zero + 0xefcdab89u, C = zero + 0x98badcfeu, D = zero + 0x10325476u;
        lanes before = zero; /* The word of the salts before the current one, which reaches into it. */

        for (uint32_t number = 0; number < most; number++) {
            lanes block[BLOCK_WORDS];
            for (uint32_t word = 0; word < BLOCK_WORDS; word++) {
                const uint32_t at = number * BLOCK_WORDS + word;
                if (at < whole) {
                    block[word] = zero + words[at];
                } else if (at - whole < group->words) {
                    const lanes salt = group->salts[at - whole];
                    /* In two steps, because a shift by 32 is undefined. */
                    block[word] = (salt << shift) | ((before >> 1) >> (31 - shift));
                    if (at == whole)
                        block[word] |= words[at];
                    before = salt;
                } else {
                    block[word] = zero;
                }
            }
            /* The number of bits, at the end of the last block of a message. */
            block[14] |= (bytes * 8) & (lanes)(blocks == number + 1);

            lanes a = A, b = B, c = C, d = D;
            ROUND(0, d ^ (b & (c ^ d)), step)
            ROUND(1, (c & ~d) | (b & d), 5 * step + 1)
            ROUND(2, b ^ c ^ d, 3 * step + 5)
            ROUND(3, c ^ (b | ~d), 7 * step)
            const lanes unfinished = (lanes)(blocks > number);
            A += a & unfinished, B += b & unfinished, C += c & unfinished, D += d & unfinished;
        }

        uint8_t below[LANES];
        for (uint32_t lane = 0; lane < LANES; lane++) {
            const uint32_t hash = __builtin_bswap32(A[lane]);
            below[lane] = hash % 100 * 1000 + hash / 100 % 1000 < group->weights[lane];
        }
        const uint32_t rest = plan->flags - first;
        memcpy(drawn + first, below, rest < LANES ? rest : LANES);
        group = (const Group *)(group->salts + group->words);
    }
}
#undef ROUND
#undef ROW
#undef ROW_TARGET
