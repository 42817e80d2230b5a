// SPDX-License-Identifier: Apache-2.0
//
// The grammar of `key=value` words: a table of keys says where in a record each value belongs, and
// the same table reads it, prints it and explains what is accepted.
#ifndef GRAMMAR_H
#define GRAMMAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

enum { MAX_NUMBERS = 3, UNSET = -1 };

struct error {
    char text[1024];
};

// Says why something failed, in one line; always false, so that it can be returned.
bool fail(struct error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));

struct numbers {
    int count; // 0: not given
    int items[MAX_NUMBERS];
};

struct key;

struct kind {
    bool (*read)(const struct key *key, const char *text, void *field);
    // Leaves `text` empty when the field has its default; NULL for kinds that are never printed.
    void (*print)(const struct key *key, const void *field, char *text, size_t size);
};

struct key {
    const char *name;
    size_t offset;
    const struct kind *kind;
    int low, high, fallback;  // numbers; `high` is also the room of a text
    const char *const *words; // for words, up to NULL
    const char *accepted;     // what to say after a bad value, where the kind does not know
};

extern const struct kind number_kind;  // int
extern const struct kind numbers_kind; // struct numbers
extern const struct kind word_kind;    // int, the place of the word
extern const struct kind text_kind;    // char[high]

extern const char *const yes_no[];

// Gives every field of a zeroed record its default.
void grammar_reset(const struct key *keys, void *record);

// Reads one `key=value` into the record; `what` is the kind of line it stands in.
bool grammar_read(const struct key *keys, const char *what, char *word, void *record,
                  struct error *error);

// Prints every field that is not as it would be anyway, each after a blank.
void grammar_print(const struct key *keys, const void *record, FILE *out);

// A whole decimal number within bounds.
bool read_number(const char *text, int low, int high, int *number);

#endif
