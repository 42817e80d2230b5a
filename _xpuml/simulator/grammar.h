// SPDX-License-Identifier: Apache-2.0
//
// The grammar of `key=value` words: a table of keys maps each to its place in a record. The same
// table reads, prints and explains the accepted values.
#ifndef GRAMMAR_H
#define GRAMMAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

enum { MAX_NUMBERS = 4, UNSET = -1 };

struct error {
    char text[1024];
};

// Stores the reason of a failure, in one line. Always false, so that it can be returned.
bool fail(struct error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));

struct numbers {
    int count; // 0: not given
    int items[MAX_NUMBERS];
};

struct key;

struct kind {
    bool (*read)(const struct key *key, const char *text, void *field);
    // Leaves `text` empty if the field has its default; NULL for kinds that are never printed.
    void (*print)(const struct key *key, const void *field, char *text, size_t size);
};

struct key {
    const char *name;
    size_t offset;
    const struct kind *kind;
    int low, high, fallback;  // numbers; `high` is also the room of a text
    const char *const *words; // for words, up to NULL
    const char *accepted;     // for the message about a bad value, if the kind has none
};

extern const struct kind number_kind;  // int
extern const struct kind numbers_kind; // struct numbers
extern const struct kind word_kind;    // int, the index of the word
extern const struct kind text_kind;    // char[high]

extern const char *const yes_no[];

// Gives every field of a zeroed record its default.
void grammar_reset(const struct key *keys, void *record);

// Reads one `key=value` into the record; `what` is the kind of its line.
bool grammar_read(const struct key *keys, const char *what, char *word, void *record,
                  struct error *error);

// Prints every field that differs from its default, each after a blank.
void grammar_print(const struct key *keys, const void *record, FILE *out);

// Parses a whole decimal number within bounds.
bool read_number(const char *text, int low, int high, int *number);

#endif
