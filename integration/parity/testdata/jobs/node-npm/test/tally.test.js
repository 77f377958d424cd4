const test = require('node:test');
const assert = require('node:assert');
const tally = require('tally');

test('counts', () => assert.strictEqual(tally(['a', 'b', 'a']).get('a'), 2));
test('an empty list has nothing', () => assert.strictEqual(tally([]).size, 0));
