// @vitest-environment jsdom
import { act, type ChangeEvent, createElement } from 'react';
import { createRoot, type Root } from 'react-dom/client';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';

import { REST_MS, useTyped } from './useTyped';

const settle = vi.fn();
let root: Root;
let input: HTMLInputElement;

function Field({ value }: { value: string }) {
  const [typed, type] = useTyped(value, settle);
  return createElement('input', {
    value: typed,
    onChange: ({ currentTarget }: ChangeEvent<HTMLInputElement>) => type(currentTarget.value),
  });
}

/** The address has this value. */
function navigate(value: string) {
  act(() => root.render(createElement(Field, { value })));
}

function write(text: string) {
  // React does not see what is set by the field's own property.
  const set = Reflect.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value')?.set;
  act(() => {
    set?.call(input, text);
    input.dispatchEvent(new Event('input', { bubbles: true }));
  });
}

function rest() {
  act(() => {
    vi.advanceTimersByTime(REST_MS);
  });
}

beforeEach(() => {
  vi.stubGlobal('IS_REACT_ACT_ENVIRONMENT', true);
  vi.useFakeTimers();
  settle.mockClear();
  const place = document.createElement('div');
  root = createRoot(place);
  navigate('');
  input = place.querySelector('input') ?? expect.fail('there is no field');
});

afterEach(() => {
  act(() => root.unmount());
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

it('what is typed is there at once, and counts when the typing rests', () => {
  for (const text of ['a', 'ad', 'ada']) write(text);
  expect(input.value).toBe('ada');
  expect(settle).not.toHaveBeenCalled();

  rest();

  expect(settle.mock.calls).toEqual([['ada']]);
});

it('what arrives of it does not take away what was typed since', () => {
  write('ad');
  rest();
  write('ada');

  navigate('ad');

  expect(input.value).toBe('ada');
});

it('an address from elsewhere is shown, also one that was typed before', () => {
  write('ada');
  rest();
  navigate('ada');

  navigate('');
  expect(input.value).toBe('');
  navigate('ada');
  expect(input.value).toBe('ada');
});
