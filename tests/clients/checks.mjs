// What the checks in JavaScript share. They print one line each.
import path from 'node:path';
import {createRequire} from 'node:module';

// A package lies where it was installed, not beside the check.
export const load = createRequire(path.join(process.env.NODE_FOLDER, 'package.json'));

let failures = 0;

export async function check(name, run) {
  try {
    await run();
    console.log('ok      ' + name);
  } catch (error) {
    failures += 1;
    console.log('FAILED  ' + name + ': ' + error.message);
  }
}

// Ends the program: 1 when a check failed.
export function finish() {
  process.exit(failures ? 1 : 0);
}
