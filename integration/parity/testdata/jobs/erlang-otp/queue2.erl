%% A queue of two lists.
-module(queue2).
-export([new/0, put/2, get/1, test/0]).
-compile({no_auto_import, [put/2, get/1]}).

new() -> {[], []}.
put(X, {In, Out}) -> {[X | In], Out}.
get({[], []}) -> empty;
get({In, []}) -> get({[], lists:reverse(In)});
get({In, [X | Out]}) -> {X, {In, Out}}.

test() ->
    Q = put(3, put(2, put(1, new()))),
    {1, Q1} = get(Q),
    {2, Q2} = get(put(4, Q1)),
    {3, Q3} = get(Q2),
    {4, Q4} = get(Q3),
    empty = get(Q4),
    ok.
