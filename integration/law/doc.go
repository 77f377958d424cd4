// Package law holds the rules of structure that the design lays down.
//
// They are tests so that nobody has to remember them: each package says in one
// sentence what it is for, imports point one way along the data line, and each
// binary links only what its privilege allows.
package law
