module Main (main) where

import System.Environment (getArgs)
import System.Exit (ExitCode (ExitFailure), exitWith)
import System.IO (hPutStrLn, stderr)

import Data.Rot13 (rot13)

main :: IO ()
main = do
  args <- getArgs
  case args of
    [] -> interact rot13
    _ -> hPutStrLn stderr "usage: rot13" >> exitWith (ExitFailure 2)
