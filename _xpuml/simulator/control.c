// SPDX-License-Identifier: Apache-2.0
//
// The functions for tools that edit the machine file.
#include "control.h"
#include "driver.h"
#include "library.h"
#include "nodes.h"

enum { RIGHT, WRONG_TEXT, WRONG_HOST };

static int answer(int code, const struct error *reason, char *error, unsigned size) {
    snprintf(error, size, "%s", code == RIGHT ? "" : reason->text);
    return code;
}

int xpumlSimulatorOpen(int number) { return library_refusal(number); }

int xpumlSimulatorCheck(const char *text, char *error, unsigned size) {
    struct error reason;
    struct machine *machine = machine_parse(text, &reason);
    int code = machine != NULL ? RIGHT : WRONG_TEXT;
    machine_free(machine);
    return answer(code, &reason, error, size);
}

int xpumlSimulatorSettle(const char *path, const char *text, const char *dev_root,
                         const char *sysfs_root, char *error, unsigned size) {
    struct error reason;
    struct machine *machine =
        text != NULL ? machine_parse(text, &reason) : machine_read(path, &reason);
    int code = machine != NULL ? RIGHT : WRONG_TEXT;
    if (machine != NULL) {
        struct site site = {path, dev_root, sysfs_root};
        site_complete(&site, machine);
        code = driver_settle(machine, &site, &reason) ? RIGHT : WRONG_HOST;
    }
    machine_free(machine);
    return answer(code, &reason, error, size);
}

static void describe(const struct machine *machine, FILE *out) {
    int major = node_major(machine);
    for (int place = 0; place < MAX_NODES; place++) {
        // The order is its own inverse.
        const struct unit *unit = machine->by_node[library_rank(&machine->settings, place)];
        if (unit != NULL)
            fprintf(out, "xpu%d\t%d:%d\t%s\t%d\t%s%s\n", unit->node, major, unit->minor,
                    pci_address(unit_pci(unit)).text, unit->card->numa, unit->card->model->name,
                    unit->vf ? " VF" : "");
    }
    if (!machine->settings.gone)
        fprintf(out, "xpuctrl\t%d:%d\t-\t-\t-\n", major, control_minor(machine));
}

int xpumlSimulatorDescribe(const char *path, char *text, unsigned size, char *error,
                           unsigned error_size) {
    struct error reason;
    struct machine *machine = machine_read(path, &reason);
    FILE *out = machine == NULL ? NULL : fmemopen(text, size, "w");
    if (machine != NULL && out == NULL)
        fail(&reason, "out of memory");
    if (out != NULL) {
        describe(machine, out);
        fclose(out);
    }
    machine_free(machine);
    return answer(out != NULL ? RIGHT : WRONG_TEXT, &reason, error, error_size);
}
