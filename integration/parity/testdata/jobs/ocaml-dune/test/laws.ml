let () =
  List.iter
    (fun (text, want) -> assert (Expr.eval text = want))
    [ ("1", 1); ("1+2*3", 7); ("(1+2)*3", 9); ("8 - 4 - 2", 2); ("--5", 5); ("7 / 2", 3) ];
  match Expr.eval "1 +" with
  | _ -> assert false
  | exception Expr.Syntax 3 -> print_endline "all hold"
