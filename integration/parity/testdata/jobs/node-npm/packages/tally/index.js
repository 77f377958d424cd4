// Counts how often each thing is in a list.
module.exports = function tally(list) {
  const counts = new Map();
  for (const thing of list) counts.set(thing, (counts.get(thing) || 0) + 1);
  return counts;
};
