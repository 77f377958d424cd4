/* roman prints a number the way it is carved over doors. */
#include <stdio.h>
#include <stdlib.h>

static const struct { int value; const char *letters; } steps[] = {
    {1000, "M"}, {900, "CM"}, {500, "D"}, {400, "CD"}, {100, "C"}, {90, "XC"}, {50, "L"},
    {40, "XL"}, {10, "X"}, {9, "IX"}, {5, "V"}, {4, "IV"}, {1, "I"},
};

int main(int argc, char **argv) {
    int n = argc == 2 ? atoi(argv[1]) : 0;
    if (n < 1 || n > 3999) {
        fprintf(stderr, "usage: roman 1..3999\n");
        return 2;
    }
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        for (; n >= steps[i].value; n -= steps[i].value)
            fputs(steps[i].letters, stdout);
    putchar('\n');
    return 0;
}
