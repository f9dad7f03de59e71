import { NumberInput, SimpleGrid } from '@mantine/core';
import type { UseFormReturnType } from '@mantine/form';

import type { UserDetails } from './queries';

/** As a form holds them: what is empty is without a limit of its own. */
export interface Limits {
  rate: number | '';
  jobs: number | '';
  budget: number | '';
  weight: number | '';
}

export const NO_LIMITS: Limits = { rate: '', jobs: '', budget: '', weight: '' };

export function limitsOf(user: UserDetails): Limits {
  return {
    rate: user.rate_limit_per_hour ?? '',
    jobs: user.max_concurrent_jobs ?? '',
    budget: user.daily_budget_usd ?? '',
    weight: user.queue_weight ?? '',
  };
}

export function bodyOf({ rate, jobs, budget, weight }: Limits) {
  const given = (value: number | '') => (value === '' ? null : value);
  return {
    rate_limit_per_hour: given(rate),
    max_concurrent_jobs: given(jobs),
    daily_budget_usd: given(budget),
    queue_weight: given(weight),
  };
}

export function LimitInputs<Form extends Limits>({ form }: { form: UseFormReturnType<Form> }) {
  return (
    <SimpleGrid cols={{ base: 1, xs: 2 }}>
      <NumberInput
        label="Requests in an hour"
        placeholder="As everybody"
        min={1}
        allowDecimal={false}
        {...form.getInputProps('rate')}
      />
      <NumberInput label="Jobs at a time" placeholder="No limit" min={1} allowDecimal={false} {...form.getInputProps('jobs')} />
      <NumberInput
        label="Budget of a day"
        placeholder="No limit"
        prefix="$"
        min={0}
        decimalScale={2}
        {...form.getInputProps('budget')}
      />
      <NumberInput
        label="Weight in the queue"
        description="Turns for one of the others while jobs wait."
        placeholder="1"
        min={1}
        max={1000}
        allowDecimal={false}
        inputWrapperOrder={['label', 'input', 'description', 'error']}
        {...form.getInputProps('weight')}
      />
    </SimpleGrid>
  );
}
