#include "interval.h"
#include <algorithm>

bool overlap(Interval a, Interval b) { return a.from < b.to && b.from < a.to; }

std::vector<Interval> unite(std::vector<Interval> all) {
    std::sort(all.begin(), all.end(), [](auto &a, auto &b) { return a.from < b.from; });
    std::vector<Interval> out;
    for (auto i : all) {
        if (!out.empty() && i.from <= out.back().to)
            out.back().to = std::max(out.back().to, i.to);
        else
            out.push_back(i);
    }
    return out;
}
