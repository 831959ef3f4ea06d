/*
 * Draws in C: whether a unit, such as a user, is within the rollouts of many flags. `python.py` is the reference.
 *
 * It knows nothing of Python, allocates nothing, keeps nothing, and parses nothing: units and salts are opaque bytes
 * whose lengths come with them and are checked here. The caller owns all memory. At the end, what was drawn is put
 * where the caller's answers want it, which are opaque as well.
 *
 * What is hashed is a unit followed by the salt of a flag, and the salts are the same for all units. So a plan holds
 * them as MD5 will read them: sixteen flags form a group, and the words with the same number of their salts are the
 * lanes of one vector. A unit's words are the same for the sixteen, so they fill all lanes of the vectors before.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if !defined(__GNUC__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernel needs the vectors of GCC or Clang, and a little-endian processor: draws are made in Python"
#endif

/* What native.py expects; another number for another layout of the functions below. */
#define VERSION 2
#define LANES 16
#define ALIGNMENT 64
#define MAX_FLAGS 1000000
#define MAX_SALT_BYTES 512
#define MAX_UNIT_BYTES 256
#define MAX_UNIT_WORDS (MAX_UNIT_BYTES / 4 + 1)
/* For the head of a record, of which the first says how many follow. */
#define HEAD_BYTES 16
#define BLOCK_BYTES 64
#define BLOCK_WORDS 16
/* MD5 ends a message with the byte 0x80 and eight bytes of its length. */
#define END_BYTES 9

typedef uint32_t lanes __attribute__((vector_size(4 * LANES), aligned(ALIGNMENT), may_alias));

typedef struct {
    uint32_t flags;
} __attribute__((aligned(ALIGNMENT))) Plan;

/* The plan is followed by its groups, each by its salts. */
typedef struct {
    lanes salt_bytes;
    lanes weights;      /* Thousandths of a per cent. */
    uint32_t longest;   /* Of the salts, in bytes. */
    uint32_t words;     /* That the longest takes, with its 0x80, after a unit that ends within a word. */
    lanes salts[];
} Group;

static const uint32_t SINES[64] = {
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391,
};
static const uint32_t ROTATIONS[4][4] = {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};

/*
 * The draws of one unit, compiled for several processors from one text. A library that runs on any processor of its
 * kind picks one when it makes a draw.
 */
#define ROW row_for_any
#define ROW_TARGET
#include "kernel_row.h"
#if defined(__x86_64__) && !defined(DRAWS_BASELINE)
#define ROW row_for_avx2
#define ROW_TARGET __attribute__((target("avx2")))
#include "kernel_row.h"
#define ROW row_for_avx512
#define ROW_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#include "kernel_row.h"
#endif

typedef void Row(const Plan *plan, const uint8_t *unit, size_t unit_bytes, uint8_t *drawn);

static Row *row_for_this_processor(void) {
#if defined(__x86_64__) && !defined(DRAWS_BASELINE)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512dq"))
        return row_for_avx512;
    if (__builtin_cpu_supports("avx2"))
        return row_for_avx2;
#endif
    return row_for_any;
}

static uint32_t words_of(uint32_t salt_bytes) {
    return (3 + salt_bytes + 1 + 3) / 4;
}

static uint32_t longest_in_group(const uint32_t *salt_bytes, uint32_t flags) {
    uint32_t longest = 0;
    for (uint32_t lane = 0; lane < LANES && lane < flags; lane++)
        if (salt_bytes[lane] > longest)
            longest = salt_bytes[lane];
    return longest;
}

static int is_sum(size_t sum, size_t count, const uint32_t *parts) {
    for (size_t number = 0; number < count; sum -= parts[number++])
        if (parts[number] > sum)
            return 0;
    return !sum;
}

uint32_t draws_version(void) {
    return VERSION;
}

/* How many bytes the plan of these flags takes; 0 if there are too many of them, or a salt is too long. */
size_t draws_plan_bytes(uint32_t flags, const uint32_t *salt_bytes) {
    size_t bytes = sizeof(Plan);
    if (flags > MAX_FLAGS)
        return 0;
    for (uint32_t first = 0; first < flags; first += LANES) {
        uint32_t longest = longest_in_group(salt_bytes + first, flags - first);
        if (longest > MAX_SALT_BYTES)
            return 0;
        bytes += sizeof(Group) + words_of(longest) * sizeof(lanes);
    }
    return bytes;
}

static void set_lane(Group *group, uint32_t lane, const uint8_t *salt, uint32_t bytes, uint32_t weight) {
    uint8_t text[MAX_SALT_BYTES + 8] = {0};
    memcpy(text, salt, bytes);
    text[bytes] = 0x80;
    group->salt_bytes[lane] = bytes;
    group->weights[lane] = weight;
    for (uint32_t word = 0; word < words_of(bytes); word++) {
        uint32_t value;
        memcpy(&value, text + 4 * word, 4);
        group->salts[word][lane] = value;
    }
}

/*
 * Write the plan of these flags into `memory`, which is aligned to 64 bytes. The salts stand one after the other.
 * Returns 1, or 0 if memory or salts have another size than the lengths say.
 */
int draws_make_plan(void *memory, size_t memory_bytes, uint32_t flags, const uint8_t *salts, size_t salts_bytes,
                    const uint32_t *salt_bytes, const uint32_t *weights) {
    size_t needed = draws_plan_bytes(flags, salt_bytes);
    if (!needed || memory_bytes != needed || (uintptr_t)memory % ALIGNMENT)
        return 0;
    if (!is_sum(salts_bytes, flags, salt_bytes))
        return 0;
    memset(memory, 0, memory_bytes);
    ((Plan *)memory)->flags = flags;
    Group *group = (Group *)((Plan *)memory + 1);
    for (uint32_t first = 0; first < flags; first += LANES) {
        group->longest = longest_in_group(salt_bytes + first, flags - first);
        group->words = words_of(group->longest);
        for (uint32_t flag = first; flag < flags && flag < first + LANES; salts += salt_bytes[flag++])
            set_lane(group, flag - first, salts, salt_bytes[flag], weights[flag]);
        group = (Group *)(group->salts + group->words);
    }
    return 1;
}

/* Write the draws of a unit, a byte for each flag, 0 or 1. Returns 1, or 0 if a size does not fit. */
int draws_of_one(const Plan *plan, const uint8_t *unit, size_t unit_bytes, uint8_t *drawn, size_t drawn_bytes) {
    if (unit_bytes > MAX_UNIT_BYTES || drawn_bytes != plan->flags)
        return 0;
    row_for_this_processor()(plan, unit, unit_bytes, drawn);
    return 1;
}

/*
 * Write the draws of units, which stand one after the other in `text`, as rows. Returns how many rows it has left as
 * they were because their units are too long, or -1 if a size does not fit.
 */
int64_t draws_of_many(const Plan *plan, size_t units, const uint8_t *text, size_t text_bytes,
                      const uint32_t *unit_bytes, uint8_t *drawn, size_t drawn_bytes) {
    int64_t left = 0;
    Row *row = row_for_this_processor();
    if (!plan->flags || drawn_bytes % plan->flags || drawn_bytes / plan->flags != units)
        return -1;
    if (!is_sum(text_bytes, units, unit_bytes))
        return -1;
    for (size_t unit = 0; unit < units; text += unit_bytes[unit++], drawn += plan->flags) {
        if (unit_bytes[unit] > MAX_UNIT_BYTES)
            left++;
        else
            row(plan, text, unit_bytes[unit], drawn);
    }
    return left;
}

/* Write values to their slots in a text. Returns 1, or 0 if a size or a slot does not fit; then some are written. */
int draws_put(uint8_t *text, size_t text_bytes, const uint8_t *values, size_t values_count, const uint32_t *slots,
              size_t places_count) {
    if (values_count != places_count)
        return 0;
    for (size_t number = 0; number < values_count; number++) {
        if (slots[number] >= text_bytes)
            return 0;
        text[slots[number]] = values[number];
    }
    return 1;
}

static uint8_t *append(uint8_t *to, const uint8_t *from, size_t bytes) {
    if (bytes)
        memcpy(to, from, bytes);
    return to + bytes;
}

/*
 * Write a record for each unit: the head for its length, the unit, what is between, its row. `heads` has HEAD_BYTES for
 * each length up to MAX_UNIT_BYTES. Returns how many bytes are written, or -1 if a size does not fit.
 */
int64_t draws_join(size_t units, const uint8_t *text, size_t text_bytes, const uint32_t *unit_bytes,
                   const uint8_t *heads, size_t heads_bytes, const uint8_t *between, size_t between_bytes,
                   const uint8_t *rows, size_t rows_bytes, uint8_t *joined, size_t joined_bytes) {
    const uint8_t *const end = joined + joined_bytes;
    uint8_t *to = joined;
    if (!units || rows_bytes % units || heads_bytes != (MAX_UNIT_BYTES + 1) * HEAD_BYTES)
        return -1;
    if (!is_sum(text_bytes, units, unit_bytes))
        return -1;
    const size_t row_bytes = rows_bytes / units;
    for (size_t unit = 0; unit < units; unit++, rows += row_bytes) {
        const size_t bytes = unit_bytes[unit];
        if (bytes > MAX_UNIT_BYTES)
            return -1;
        const uint8_t *head = heads + bytes * HEAD_BYTES;
        if (*head >= HEAD_BYTES || (size_t)(end - to) < *head + bytes + between_bytes + row_bytes)
            return -1;
        to = append(to, head + 1, *head);
        to = append(to, text, bytes);
        to = append(to, between, between_bytes);
        to = append(to, rows, row_bytes);
        text += bytes;
    }
    return to - joined;
}
