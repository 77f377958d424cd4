let () =
  match Expr.eval Sys.argv.(1) with
  | v -> Printf.printf "%d\n" v
  | exception Expr.Syntax i -> Printf.eprintf "no sense from character %d on\n" (i + 1); exit 2
  | exception Division_by_zero -> prerr_endline "division by zero"; exit 3
