exception Syntax of int

(* Each parser takes the place to start at, and gives the value and where it ended. *)
let eval text =
  let rec blank i = if i < String.length text && text.[i] = ' ' then blank (i + 1) else i in
  let at i = if i < String.length text then text.[i] else '\000' in
  let rec sum i = more sum_op product (product i)
  and product i = more product_op factor (factor i)
  and more op next (left, i) =
    let i = blank i in
    match op (at i) with
    | None -> (left, i)
    | Some f -> let right, i = next (i + 1) in more op next (f left right, i)
  and factor i =
    let i = blank i in
    match at i with
    | '-' -> let v, i = factor (i + 1) in (-v, i)
    | '(' ->
      let v, i = sum (i + 1) in
      if at (blank i) = ')' then (v, blank i + 1) else raise (Syntax i)
    | '0' .. '9' -> number 0 i
    | _ -> raise (Syntax i)
  and number v i =
    match at i with
    | '0' .. '9' as c -> number ((10 * v) + Char.code c - 48) (i + 1)
    | _ -> (v, i)
  and sum_op = function '+' -> Some ( + ) | '-' -> Some ( - ) | _ -> None
  and product_op = function '*' -> Some ( * ) | '/' -> Some ( / ) | _ -> None in
  let v, i = sum 0 in
  if blank i = String.length text then v else raise (Syntax i)
