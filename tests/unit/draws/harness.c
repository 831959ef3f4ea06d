/*
 * Calls the kernel with what stands on standard input, until that ends, and writes what it draws. Each argument is in a
 * block of memory of its own and of exactly its size, so that a sanitizer sees every byte that is read or written too
 * much. It also calls with sizes that do not fit, and ends with 2 if the kernel accepts one.
 *
 * Input, as often as there is: flags, units (uint32 each); salt lengths, weights, unit lengths (uint32 for each flag or
 * unit); salts, units (bytes). Output: the rows of draws_of_many, those of draws_of_one, what draws_put makes of the
 * first rows, and the records of draws_join, unless a unit is too long. A row that the kernel leaves out consists of
 * twos.
 */
#include <stdio.h>
#include <stdlib.h>

#include "kernel.c"

static void *block(size_t bytes) {
    void *memory = malloc(bytes);
    if (bytes && !memory)
        abort();
    return memory;
}

static void *read_block(size_t bytes) {
    void *memory = block(bytes);
    if (bytes && fread(memory, 1, bytes, stdin) != bytes)
        exit(3);
    return memory;
}

static size_t sum(uint32_t count, const uint32_t *parts) {
    size_t total = 0;
    while (count)
        total += parts[--count];
    return total;
}

static void refused(int is_refused) {
    if (!is_refused)
        exit(2);
}

static Plan *make_plan(uint32_t flags, const uint32_t *salt_bytes, const uint32_t *weights, const uint8_t *salts) {
    size_t bytes = draws_plan_bytes(flags, salt_bytes), text = sum(flags, salt_bytes);
    uint8_t *memory = aligned_alloc(ALIGNMENT, bytes);
    refused(!draws_make_plan(memory, bytes - 1, flags, salts, text, salt_bytes, weights));
    refused(!draws_make_plan(memory, bytes + 1, flags, salts, text, salt_bytes, weights));
    refused(!draws_make_plan(memory + 4, bytes, flags, salts, text, salt_bytes, weights));
    refused(!draws_make_plan(memory, bytes, flags, salts, text - 1, salt_bytes, weights));
    refused(!draws_make_plan(memory, bytes, flags, salts, text + 1, salt_bytes, weights));
    refused(draws_make_plan(memory, bytes, flags, salts, text, salt_bytes, weights) == 1);
    return (Plan *)memory;
}

static uint8_t *twos(size_t bytes) {
    return memset(block(bytes), 2, bytes);
}

static uint8_t *draw_many(const Plan *plan, uint32_t units, const uint32_t *unit_bytes, const uint8_t *text) {
    size_t bytes = (size_t)units * plan->flags, size = sum(units, unit_bytes);
    uint8_t *drawn = twos(bytes);
    refused(draws_of_many(plan, units, text, size - 1, unit_bytes, drawn, bytes) < 0);
    refused(draws_of_many(plan, units, text, size + 1, unit_bytes, drawn, bytes) < 0);
    refused(draws_of_many(plan, units, text, size, unit_bytes, drawn, bytes - 1) < 0);
    refused(draws_of_many(plan, units, text, size, unit_bytes, drawn, bytes + plan->flags) < 0);
    refused(draws_of_many(plan, units, text, size, unit_bytes, drawn, bytes) >= 0);
    fwrite(drawn, 1, bytes, stdout);
    return drawn;
}

/* Put values into every second byte. */
static void put(const uint8_t *values, uint32_t count) {
    uint32_t *slots = block(4 * count);
    uint8_t *text = memset(block(2 * count), 0, 2 * count);
    for (uint32_t number = 0; number < count; number++)
        slots[number] = 2 * number;
    refused(!draws_put(text, 2 * count, values, count, slots, count - 1));
    refused(!draws_put(text, 2 * count, values, count, slots, count + 1));
    slots[0] = 2 * count;
    refused(!draws_put(text, 2 * count, values, count, slots, count));
    slots[0] = 0;
    refused(draws_put(text, 2 * count, values, count, slots, count));
    fwrite(text, 1, 2 * count, stdout);
    free(slots), free(text);
}

/* Join records whose heads have as many bytes as the units, up to 15. */
static void join(uint32_t units, const uint32_t *unit_bytes, const uint8_t *text, const uint8_t *rows, size_t bytes) {
    const size_t size = sum(units, unit_bytes), table = (MAX_UNIT_BYTES + 1) * HEAD_BYTES;
    uint8_t *heads = memset(block(table), 0, table), *between = memset(block(3), '~', 3);
    size_t needed = size + bytes + 3 * units;
    int is_too_long = 0;
    for (uint32_t length = 0; length <= MAX_UNIT_BYTES; length++)
        heads[length * HEAD_BYTES] = length % HEAD_BYTES;
    for (uint32_t unit = 0; unit < units; unit++) {
        needed += unit_bytes[unit] % HEAD_BYTES;
        is_too_long |= unit_bytes[unit] > MAX_UNIT_BYTES;
    }
    uint8_t *joined = block(needed), *roomy = block(needed + HEAD_BYTES);
#define JOIN(size, table, bytes, needed) \
    draws_join(units, text, size, unit_bytes, heads, table, between, 3, rows, bytes, joined, needed)
    refused(JOIN(size - 1, table, bytes, needed) < 0 && JOIN(size + 1, table, bytes, needed) < 0);
    refused(JOIN(size, table - 1, bytes, needed) < 0 && JOIN(size, table, bytes, needed - 1) < 0);
    refused(units == 1 || JOIN(size, table, bytes - 1, needed) < 0);
    refused(JOIN(size, table, bytes, needed) == (is_too_long ? -1 : (int64_t)needed));
    fwrite(joined, 1, is_too_long ? 0 : needed, stdout);
    heads[unit_bytes[0] % (MAX_UNIT_BYTES + 1) * HEAD_BYTES] = HEAD_BYTES;
    refused(draws_join(units, text, size, unit_bytes, heads, table, between, 3, rows, bytes, roomy, needed + HEAD_BYTES)
            < 0);
    free(heads), free(between), free(joined), free(roomy);
}

static void draw_one(const Plan *plan, uint32_t unit_bytes, const uint8_t *text) {
    uint8_t *unit = block(unit_bytes), *drawn = twos(plan->flags);
    memcpy(unit, text, unit_bytes);
    refused(!draws_of_one(plan, unit, unit_bytes, drawn, plan->flags - 1));
    refused(!draws_of_one(plan, unit, unit_bytes, drawn, plan->flags + 1));
    draws_of_one(plan, unit, unit_bytes, drawn, plan->flags);
    fwrite(drawn, 1, plan->flags, stdout);
    free(unit);
    free(drawn);
}

int main(void) {
    uint32_t counts[2];
    const uint32_t too_long = MAX_SALT_BYTES + 1;
    refused(!draws_plan_bytes(1, &too_long) && !draws_plan_bytes(MAX_FLAGS + 1, NULL));
    while (fread(counts, sizeof counts, 1, stdin) == 1) {
        uint32_t flags = counts[0], units = counts[1];
        uint32_t *salt_bytes = read_block(4 * flags), *weights = read_block(4 * flags);
        uint32_t *unit_bytes = read_block(4 * units);
        uint8_t *salts = read_block(sum(flags, salt_bytes)), *text = read_block(sum(units, unit_bytes));
        Plan *plan = make_plan(flags, salt_bytes, weights, salts);
        uint8_t *rows = draw_many(plan, units, unit_bytes, text);
        for (uint32_t unit = 0, at = 0; unit < units; at += unit_bytes[unit++])
            draw_one(plan, unit_bytes[unit], text + at);
        put(rows, units * flags);
        join(units, unit_bytes, text, rows, (size_t)units * flags);
        free(rows), free(salt_bytes), free(weights), free(unit_bytes), free(salts), free(text), free(plan);
    }
    return 0;
}
