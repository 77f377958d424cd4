#!/bin/sh
echo "1 looks good"
echo "2 does not" && exit 42
