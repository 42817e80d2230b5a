// SPDX-License-Identifier: Apache-2.0
//
// The sweep as a plain C loop: `sweep LIBRARY TIMES` opens a libxpuml, counts once, and asks every
// device for its handle and state so many times. It prints how many devices there are and each
// sweep's CPU nanoseconds.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static int64_t spent(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    int (*init)(void) = (int (*)(void))dlsym(library, "xpumlInit");
    int (*get_count)(unsigned *) = (int (*)(unsigned *))dlsym(library, "xpumlDeviceGetCount");
    int (*get_handle)(unsigned, void **) =
        (int (*)(unsigned, void **))dlsym(library, "xpumlDeviceGetHandleByIndex");
    int (*get_state)(void *, int *) = (int (*)(void *, int *))dlsym(library, "xpumlDeviceGetState");
    unsigned count = 0;
    if (!init || !get_count || !get_handle || !get_state || init() != 0 || get_count(&count) != 0)
        return 1;
    struct {
        int code, state;
    } *answers = calloc(count + 1, sizeof(*answers));
    if (answers == NULL)
        return 1;
    printf("%u\n", count);
    for (int time = 0; time < atoi(argv[2]); time++) {
        int64_t begin = spent();
        for (unsigned index = 0; index < count; index++) {
            void *device = NULL;
            int state = 0;
            int code = get_handle(index, &device);
            if (code == 0)
                code = get_state(device, &state);
            answers[index].code = code;
            answers[index].state = state;
        }
        printf("%lld\n", (long long)(spent() - begin));
    }
    free(answers);
    return 0;
}
