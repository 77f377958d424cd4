local a, b = 0, 1
for _ = 1, tonumber(arg[1]) do a, b = b, a + b end
print(a)
