program Sieve;
{ prints the primes up to a limit }
var
  Composite: array[2..10000] of Boolean;
  Limit, I, J, Code: Integer;
begin
  Val(ParamStr(1), Limit, Code);
  if (Code <> 0) or (Limit > 10000) then Halt(2);
  for I := 2 to Limit do
    if not Composite[I] then
    begin
      WriteLn(I);
      J := I * 2;
      while J <= Limit do begin Composite[J] := True; J := J + I end;
    end;
end.
