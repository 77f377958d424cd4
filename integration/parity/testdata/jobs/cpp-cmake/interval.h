#pragma once
#include <vector>

struct Interval { int from, to; };  // half open

bool overlap(Interval a, Interval b);
std::vector<Interval> unite(std::vector<Interval> all);
