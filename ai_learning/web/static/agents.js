export function start() {}
export function update() {}
