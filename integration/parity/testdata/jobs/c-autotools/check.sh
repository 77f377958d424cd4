#!/bin/sh
# Compares a few numbers with what stands on known buildings.
set -e
test "$(./roman 1994)" = MCMXCIV
test "$(./roman 4)" = IV
! ./roman 0
