#include "interval.h"
#include <iostream>
#include <string>

int main(int argc, char **argv) {
    std::string what = argc > 1 ? argv[1] : "";
    bool ok = false;
    if (what == "overlap")
        ok = overlap({0, 2}, {1, 3}) && !overlap({0, 1}, {1, 2});
    else if (what == "union")
        ok = unite({{4, 5}, {0, 2}, {1, 3}}).size() == 2;
    std::cout << what << (ok ? ": holds" : ": does not hold") << std::endl;
    return ok ? 0 : 1;
}
