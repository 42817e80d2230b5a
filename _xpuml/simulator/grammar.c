// SPDX-License-Identifier: Apache-2.0
//
// Reads, prints and explains `key=value` words by a table of keys.
#include "grammar.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

const char *const yes_no[] = {"no", "yes", NULL};

bool fail(struct error *error, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    return false;
}

bool read_number(const char *text, int low, int high, int *number) {
    char *end;
    if (strspn(text, "-0123456789") != strlen(text))
        return false;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || value < low || value > high)
        return false;
    *number = (int)value;
    return true;
}

static bool number_read(const struct key *key, const char *text, void *field) {
    return read_number(text, key->low, key->high, field);
}

static void number_print(const struct key *key, const void *field, char *text, size_t size) {
    if (*(const int *)field != key->fallback)
        snprintf(text, size, "%d", *(const int *)field);
}

static bool numbers_read(const struct key *key, const char *text, void *field) {
    struct numbers *numbers = field;
    char copy[128];
    char *rest = copy, *item;
    if (snprintf(copy, sizeof copy, "%s", text) >= (int)sizeof copy)
        return false;
    for (numbers->count = 0; (item = strsep(&rest, ",")) != NULL; numbers->count++)
        if (numbers->count == MAX_NUMBERS ||
            !read_number(item, key->low, key->high, &numbers->items[numbers->count]))
            return false;
    return true;
}

static void numbers_print(const struct key *key, const void *field, char *text, size_t size) {
    const struct numbers *numbers = field;
    (void)key;
    for (int i = 0, length = 0; i < numbers->count; i++)
        length +=
            snprintf(text + length, size - (size_t)length, "%s%d", i ? "," : "", numbers->items[i]);
}

static bool word_read(const struct key *key, const char *text, void *field) {
    for (int i = 0; key->words[i] != NULL; i++)
        if (strcmp(key->words[i], text) == 0) {
            *(int *)field = i;
            return true;
        }
    return false;
}

static void word_print(const struct key *key, const void *field, char *text, size_t size) {
    if (*(const int *)field != key->fallback)
        snprintf(text, size, "%s", key->words[*(const int *)field]);
}

static bool text_read(const struct key *key, const char *text, void *field) {
    return *text != '\0' && snprintf(field, (size_t)key->high, "%s", text) < key->high;
}

static void text_print(const struct key *key, const void *field, char *text, size_t size) {
    (void)key;
    snprintf(text, size, "%s", (const char *)field);
}

const struct kind number_kind = {number_read, number_print};
const struct kind numbers_kind = {numbers_read, numbers_print};
const struct kind word_kind = {word_read, word_print};
const struct kind text_kind = {text_read, text_print};

void grammar_reset(const struct key *keys, void *record) {
    for (const struct key *key = keys; key->name != NULL; key++)
        if (key->kind == &number_kind || key->kind == &word_kind)
            *(int *)((char *)record + key->offset) = key->fallback;
}

static void explain(const struct key *key, FILE *out) {
    if (key->accepted != NULL) {
        fputs(key->accepted, out);
    } else if (key->kind == &word_kind) {
        for (int i = 0; key->words[i] != NULL; i++)
            fprintf(out, "%s%s", i ? ", " : "", key->words[i]);
    } else if (key->kind == &text_kind) {
        fprintf(out, "a text of at most %d characters", key->high - 1);
    } else {
        fprintf(out, "%s %d..%d", key->kind == &numbers_kind ? "numbers, by commas," : "a number",
                key->low, key->high);
    }
}

static bool refuse(const struct key *keys, const struct key *key, const char *what,
                   const char *name, const char *value, struct error *error) {
    FILE *out = fmemopen(error->text, sizeof error->text, "w");
    if (out == NULL)
        return fail(error, "'%s' of %s is not accepted", name, what);
    if (key != NULL) {
        fprintf(out, "%s of %s: '%s'; accepted: ", name, what, value);
        explain(key, out);
    } else {
        fprintf(out, "unknown key '%s' of %s; accepted: ", name, what);
        for (key = keys; key->name != NULL; key++)
            fprintf(out, "%s%s", key == keys ? "" : ", ", key->name);
    }
    fclose(out);
    error->text[sizeof error->text - 1] = '\0';
    return false;
}

bool grammar_read(const struct key *keys, const char *what, char *word, void *record,
                  struct error *error) {
    char *value = strchr(word, '=');
    if (value == NULL)
        return fail(error, "'%s' of %s; accepted: KEY=VALUE", word, what);
    *value++ = '\0';
    for (const struct key *key = keys; key->name != NULL; key++)
        if (strcmp(key->name, word) == 0)
            return key->kind->read(key, value, (char *)record + key->offset) ||
                   refuse(keys, key, what, word, value, error);
    return refuse(keys, NULL, what, word, value, error);
}

void grammar_print(const struct key *keys, const void *record, FILE *out) {
    for (const struct key *key = keys; key->name != NULL; key++) {
        char text[128] = "";
        key->kind->print(key, (const char *)record + key->offset, text, sizeof text);
        if (*text != '\0')
            fprintf(out, " %s=%s", key->name, text);
    }
}
